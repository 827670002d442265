"""Will it fit? Bytes that every program of a step needs on a device, from shapes alone, before anything has run.

XLA says what a compiled program needs: arguments, outputs, temporaries, and how much of its outputs takes the place of
donated arguments. While it runs, other arrays of the run live beside its arguments (during a rollout, say, optimizer
state and reference model); the sum of both is held against the memory of the device.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
from rich.table import Table

from iiblpo_jax.errors import InputError
from iiblpo_jax.rollout.answers import gold_of
from iiblpo_jax.rollout.engine import rollout
from iiblpo_jax.scoring import inform, score
from iiblpo_jax.update_rows import UpdateRows

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramMemory:
    """Bytes of one program on one device.

    Attributes:
      name: of the program.
      mend: what a user may change to make it smaller.
      arguments, outputs, temporaries: as XLA counts them.
      donated: outputs that lie where donated arguments lay.
      beside: what else is alive while it runs.
    """

    name: str
    mend: str
    arguments: int
    outputs: int
    temporaries: int
    donated: int
    beside: int

    @property
    def peak(self) -> int:
        """All of it, at the worst moment."""
        return self.arguments + self.outputs - self.donated + self.temporaries + self.beside


class Program(NamedTuple):
    """A jitted function and its abstract arguments."""

    name: str
    mend: str
    function: Any
    args: tuple
    kwargs: Mapping = MappingProxyType({})


def abstract_of(tree):
    """The same tree as jax.ShapeDtypeStructs, with the shardings of what is bound to its devices.

    Leaves that are ShapeDtypeStructs already stay as they are.
    """

    def abstract(x):
        if isinstance(x, jax.ShapeDtypeStruct):
            return x
        sharding = x.sharding if getattr(x, "committed", False) else None
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(abstract, tree)


def measure(program: Program, alive, *, compiler_options: dict | None = None) -> tuple[ProgramMemory, Any]:
    """Compiles a program for abstract arguments.

    Args:
      program: what to compile.
      alive: pytree of everything that lives on the device meanwhile. Leaves that are the program's arguments, the same
        objects, count once.
      compiler_options: of XLA.

    Returns:
      Its memory, and its outputs as ShapeDtypeStructs with the shardings that the compiler chose.
    """
    lowered = program.function.lower(*program.args, **program.kwargs)
    compiled = lowered.compile(compiler_options=compiler_options)
    found = compiled.memory_analysis()
    mine = {id(leaf) for leaf in jax.tree.leaves((program.args, dict(program.kwargs)))}
    memory = ProgramMemory(
        name=program.name,
        mend=program.mend,
        arguments=found.argument_size_in_bytes,
        outputs=found.output_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        donated=found.alias_size_in_bytes,
        beside=sum(bytes_per_device(leaf) for leaf in jax.tree.leaves(alive) if id(leaf) not in mine),
    )
    place = lambda out, sharding: jax.ShapeDtypeStruct(out.shape, out.dtype, sharding=sharding)  # noqa: E731
    return memory, jax.tree.map(place, lowered.out_info, compiled.output_shardings)


def bytes_per_device(leaf: jax.ShapeDtypeStruct) -> int:
    """Bytes of the part of an array that one device holds."""
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    itemsize = 8 if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
    return math.prod(shape) * itemsize


def device_limit(device: jax.Device | None = None) -> int:
    """Bytes that arrays may take on a device: what its allocator has, or its share of the machine's memory (CPU)."""
    device = device or jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // jax.local_device_count()


def check_fits(programs: Sequence[ProgramMemory], limit: int) -> None:
    """Raises InputError, which names the knob to turn, where a program needs more than `limit` bytes."""
    worst = max(programs, key=lambda p: p.peak)
    if worst.peak <= limit:
        return
    resident = worst.beside + worst.arguments > limit
    mend = "raise mesh.fsdp or mesh.tensor: weights and optimizer state alone are too large" if resident else worst.mend
    raise InputError(
        f"{worst.name} needs {worst.peak / GIB:.2f} GiB a device and there are {limit / GIB:.2f} GiB; {mend}"
    )


def memory_table(programs: Sequence[ProgramMemory], limit: int) -> Table:
    """The table that train.memory_report prints, in MiB a device."""
    fields = ("arguments", "outputs", "donated", "temporaries", "beside", "peak")
    table = Table("program", *fields, title=f"MiB a device, of {limit / 2**20:,.0f}")
    for program in programs:
        table.add_row(program.name, *(f"{getattr(program, field) / 2**20:,.1f}" for field in fields))
    return table


class StepPrograms:
    """The programs of a step up to its update, with abstract arguments: each takes what the one before puts out.

    Args:
      state: TrainState; of this and all other arrays only shapes and shardings are kept.
      reference, cvae: weights; None for no cvae.
      inputs: arrays of a batch, as `rollout` (prompt) and `inform` (marker_P, cue, answer) take them.
      markers: MarkerTables of the tasks.
      rollout_spec, score_spec: static arguments.
      publish: jitted: policy weights -> what `rollout` takes.
    """

    def __init__(self, *, state, reference, cvae, inputs, markers, rollout_spec, score_spec, publish):
        alive = (state, reference, cvae, inputs, markers, jax.random.key(0))
        self.state, self._reference, self._cvae, self._inputs, self._markers, self.key = abstract_of(alive)
        self.alive = (self.state, self._reference, self._cvae)
        self._rollout_spec, self._score_spec, self.publish = rollout_spec, score_spec, publish

    def run(self, call) -> UpdateRows:
        """Calls `call(Program)` for publish, rollout, inform and score, in this order; returns the rows of the update.

        `call` returns the abstract outputs of the program.
        """
        latents = None if self._cvae is None else {"psa": self.state.params["psa"], "cvae": self._cvae}
        published = call(Program("publish", "use rollout.dtype=bfloat16", self.publish, (self.state.params["policy"],)))
        forest, _ = call(
            Program(
                "rollout", "lower rollout.slots", rollout, (published, *self._inputs["prompt"], self.key),
                {
                    "spec": self._rollout_spec, "latents": latents,
                    "gold": gold_of(self._rollout_spec.branching, self._markers, self._inputs),
                },
            )
        )  # fmt: skip
        reads = (self._inputs["marker_P"], self._inputs["cue"], self._inputs["answer"])
        information = call(
            Program(
                "inform", "lower train.prompts_per_step, or raise mesh.fsdp", inform,
                (self._reference, forest, self._markers, *reads), {"spec": self._score_spec},
            )
        )  # fmt: skip
        reward_R = jax.ShapeDtypeStruct(forest.length_R.shape, "float32")
        arguments = (forest, reward_R, information, self.key, self.state.step)
        return call(Program("score", "lower train.prompts_per_step", score, arguments, {"spec": self._score_spec})).rows


def update_program(programs: StepPrograms, update, rows: UpdateRows) -> Program:
    """The program that follows those of StepPrograms; `update` is that of make_update, rows as `run` returns them."""
    return Program(
        "update", "lower update.microbatch, or raise mesh.fsdp", update, (programs.state, rows, programs.key)
    )


def abstract_rows(programs: StepPrograms) -> UpdateRows:
    """Shapes of the update's rows; nothing is compiled."""
    return programs.run(lambda p: jax.eval_shape(partial(p.function, **p.kwargs), *p.args))


def measure_step(programs: StepPrograms, update) -> list[ProgramMemory]:
    """Memory of every program of a step, in their order; compiles all of them. `update` is that of make_update."""
    found = []

    def compiled(program: Program):
        memory, outputs = measure(program, programs.alive)
        found.append(memory)
        return outputs

    rows = programs.run(compiled)
    compiled(update_program(programs, update, rows))
    return found
