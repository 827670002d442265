"""A plan: every program of a step compiled for given devices, and what follows for memory, traffic and time."""

import dataclasses
import math
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.planning.hlo import Collective, collectives
from iiblpo_jax.planning.memory import (
    GIB,
    ProgramMemory,
    bytes_per_device,
    check_fits,
    device_limit,
    measure,
    measure_again,
)
from iiblpo_jax.planning.roofline import CHIPS, Lengths, Work, generated_tokens, kv_bytes, step_work
from iiblpo_jax.planning.shapes import abstract_step
from iiblpo_jax.rollout.publication import kv_heads_held
from iiblpo_jax.step.programs import AbstractStep, Program

MIB = 2**20
# What compilers for TPUs say of a program that is too large: an older one, and one of today.
_SIZE = r"([\d.]+)([KMG])"
_REFUSED = (
    re.compile(rf"Used {_SIZE} of {_SIZE} hbm"),
    re.compile(rf"\({_SIZE}\) exceeds available HBM \({_SIZE}\)"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """A program: its memory, its collectives, and the seconds that compiling it took."""

    memory: ProgramMemory
    collectives: list[Collective]
    compile_s: float


@dataclasses.dataclass(kw_only=True)
class Plan:
    """What is known about a run on some devices.

    Attributes:
      topology, devices, shape: the devices and how the mesh names them.
      model: architecture that was compiled.
      limit: bytes of a device.
      resident: bytes a device of what lives through a step, and of the caches of a rollout.
      programs: compiled ones, in the order of a step.
      work: by formula, by name of program.
      seconds: least time of each on this chip; empty for devices without a data sheet.
      mfu: of the update at its least time; None likewise.
      tokens: generated in a step; lengths: what it assumes.
      decode: which form of decoding was compiled, and what the other would cost.
      refusal: why it does not fit and what to change; empty if it fits.
    """

    topology: str
    devices: int
    shape: dict[str, int]
    model: ModelConfig
    limit: int
    resident: dict[str, int]
    work: dict[str, Work]
    seconds: dict[str, float]
    mfu: float | None
    tokens: float
    lengths: Lengths
    decode: str
    programs: list[Compiled] = dataclasses.field(default_factory=list)
    refusal: str = ""

    @property
    def tokens_per_s(self) -> float | None:
        """Generated tokens over the sum of least times."""
        return self.tokens / sum(self.seconds.values()) if self.seconds else None

    def as_dict(self) -> dict:
        """All of it, for JSON."""
        fields = ("topology", "devices", "shape", "limit", "resident", "seconds", "mfu", "tokens", "decode", "refusal")
        programs = [
            {
                "name": p.memory.name,
                "bytes": dataclasses.asdict(p.memory) | {"peak": p.memory.peak},
                "collectives": [dataclasses.asdict(c) for c in p.collectives],
                "compile_s": p.compile_s,
            }
            for p in self.programs
        ]
        return {
            **{name: getattr(self, name) for name in fields},
            "fits": not self.refusal,
            "model": dataclasses.asdict(self.model),
            "lengths": dataclasses.asdict(self.lengths),
            "work": {name: dataclasses.asdict(work) for name, work in self.work.items()},
            "tokens_per_s": self.tokens_per_s,
            "programs": programs,
        }

    def show(self, console: Console) -> None:
        """Prints it."""
        axes = " x ".join(f"{name} {size}" for name, size in self.shape.items())
        console.print(f"{self.topology}: {self.devices} devices, {axes}; {self.model.n_layers} layers", highlight=False)
        table = Table("MiB a device", *self.resident, title="what lives through a step, and the cache of a rollout")
        table.add_row("", *(f"{size / MIB:,.1f}" for size in self.resident.values()))
        console.print(table)
        if self.programs:
            console.print(self._program_table())
            console.print(self._collective_table())
            console.print("a turn: one of each enclosing loop whose length only the data knows (tokens, bins, tiles)")
        else:
            table = Table("program", "TFLOP", "least s", title="by formula; nothing was compiled")
            for name in self.work:
                table.add_row(name, *self._cost(name))
            console.print(table)
        if self.decode:
            console.print(self.decode)
        lengths = f"mean prompt {self.lengths.prompt:,.0f} and response {self.lengths.response:,.0f} tokens"
        if self.seconds:
            console.print(
                f"at best, with a {lengths}: {sum(self.seconds.values()):.1f} s a step, "
                f"{self.tokens_per_s:,.0f} tokens/s, "
                f"update at {self.mfu:.0%} MFU (activations and collectives not counted)"
            )

    def _program_table(self) -> Table:
        columns = {"args": "arguments", "temp": "temporaries", "beside": "beside", "peak": "peak"}
        title = f"MiB a device, of {self.limit / MIB:,.0f}"
        table = Table("program", *columns, "TFLOP", "least s", "built s", title=title)
        for p in self.programs:
            sizes = (f"{getattr(p.memory, column) / MIB:,.1f}" for column in columns.values())
            table.add_row(p.memory.name, *sizes, *self._cost(p.memory.name), f"{p.compile_s:.0f}")
        return table

    def _cost(self, name: str) -> tuple[str, str]:
        """(TFLOP, least seconds) of a program; empty where nothing is said of it."""
        work, seconds = self.work.get(name), self.seconds.get(name)
        return "" if work is None else f"{work.flops / 1e12:,.0f}", "" if seconds is None else f"{seconds:.2f}"

    def _collective_table(self) -> Table:
        table = Table("program", "collective", "times", "MiB", "a turn", "MiB a turn", title="result bytes a device")
        for p in self.programs:
            for c in p.collectives:
                sizes = (str(c.times), f"{c.bytes / MIB:,.1f}", str(c.loop_times), f"{c.loop_bytes / MIB:,.1f}")
                table.add_row(p.memory.name, c.kind, *sizes)
        return table


def make_plan(
    config,
    model: ModelConfig,
    devices: list,
    *,
    topology: str,
    lengths: Lengths,
    memory: int = 0,
    formulas: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Compiles everything; stops at a program that the compiler finds too large.

    Args:
      config, model: of the run.
      devices: all of the run.
      topology: their name; a prefix such as `v5p` finds the chip's data sheet.
      lengths: assumed.
      memory: bytes of a device; 0 = what it has.
      formulas: compile nothing.
      progress: told which program comes next.

    Raises:
      InputError: the config cannot run on these devices.
    """
    prompts = config.train.prompts_per_step
    mesh = meshes.make_mesh(config.mesh, prompts=prompts, devices=devices)
    step, shape = abstract_step(config, model, mesh), dict(mesh.shape)
    parts = math.prod(shape[axis] for axis in meshes.rollout_axes(mesh, prompts))
    chip, work = CHIPS.get(topology.partition(":")[0]), step_work(config, model, lengths, shape, parts)
    seconds = {} if chip is None else {name: w.seconds(chip, mesh.size) for name, w in work.items()}
    recorded = bool(config.data.recorded)
    plan = Plan(
        topology=topology,
        devices=mesh.size,
        shape=shape,
        model=model,
        work=work,
        seconds=seconds,
        lengths=lengths,
        limit=memory or (device_limit(devices[0]) if chip is None else chip.memory),
        resident=_resident(config, model, step, shape, parts),
        tokens=0 if recorded else generated_tokens(config, lengths),
        decode="" if recorded else _decode_form(config, model, step),
        mfu=None if chip is None else work["update"].useful / mesh.size / chip.flops / seconds["update"],
    )

    if formulas:
        return plan

    plan.refusal = _compile_all(plan, step, progress)
    return plan


def _compile_all(plan: Plan, step: AbstractStep, progress: Callable[[str], None]) -> str:
    """Compiles the programs of a step into the plan; why they do not fit, empty if they do."""
    found: dict[str, tuple[Compiled, object]] = {}

    def compiled(program: Program):
        if program.name in found:  # that of a refill
            done, outputs = found[program.name]
            memory, outputs = measure_again(done.memory, outputs, program, step.alive)
            done = dataclasses.replace(done, memory=memory)
        else:
            progress(f"compiling {program.name}")
            done, outputs = _compile(program, step.alive)
        found[program.name] = done, outputs
        return outputs

    try:
        step.trace(compiled)
    except _TooLarge as error:
        return str(error)
    finally:
        plan.programs = [done for done, _ in found.values()]
    try:
        check_fits([p.memory for p in plan.programs], plan.limit)
    except InputError as error:
        return str(error)
    return ""


class _TooLarge(Exception):
    """The compiler refuses a program for its memory."""


def _compile(program: Program, alive) -> tuple[Compiled, object]:
    with tempfile.TemporaryDirectory() as folder:
        # Not compiled.as_text(): that of a TPU program may hold operations this jaxlib cannot read.
        dump, began = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}, time.monotonic()
        try:
            memory, outputs = measure(program, alive, compiler_options=dump)
        except jax.errors.JaxRuntimeError as error:
            found = _refusal(str(error))
            if not found:
                raise
            raise _TooLarge(f"{program.name} needs {found}; {program.mend}") from None
        seconds = time.monotonic() - began
        [text] = [path.read_text() for path in Path(folder).glob("*after_optimizations.txt")]
    return Compiled(memory=memory, collectives=collectives(text), compile_s=seconds), outputs


def _refusal(text: str) -> str:
    """What a program needs and what there is, from the text of a compiler's error; empty where it says neither."""
    for said in _REFUSED:
        if used := said.search(text):
            return f"{used[1]} {used[2]}iB a device and there are {used[3]} {used[4]}iB"
    return ""


def _resident(config, model: ModelConfig, step: AbstractStep, shape: dict, parts: int) -> dict[str, int]:
    """Bytes a device by kind."""

    def total(tree):
        return sum(bytes_per_device(leaf) for leaf in jax.tree.leaves(tree))

    state = step.state
    r = config.rollout
    token = kv_bytes(model, r.kv_dtype or r.dtype) // model.n_kv_heads * kv_heads_held(model, shape["tensor"])
    return {
        "params": total(state.params),
        "optimizer": total(state.opt_state),
        "reference" if step.frozen.base is None else "base, reference too": total(step.frozen),
        "KV cache": 0 if config.data.recorded else r.slots // parts * (r.max_prompt + r.max_tokens) * token,
    }


def _decode_form(config, model: ModelConfig, step: AbstractStep) -> str:
    layers = jax.eval_shape(step.programs.publish, step.frozen.policy(step.state)).layers
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(layers))
    if config.rollout.unroll:
        return (
            f"decode: unrolled over {model.n_layers} layers (rollout.unroll=True); compile time grows with depth. "
            f"A scan compiles one layer and slices {size / GIB:.2f} GiB of weights, over all of tensor, a token"
        )
    return (
        f"decode: a scan over layers (rollout.unroll=False), which slices {size / GIB:.2f} GiB of weights, over all of "
        f"tensor, a token; unrolled it would slice none and compile {model.n_layers} layers instead of one"
    )
