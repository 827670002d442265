"""Will it fit? Bytes that every program of a step needs on a device, from shapes alone, before anything has run.

XLA says what a compiled program needs: arguments, outputs, temporaries, and how much of its outputs takes the place of
donated arguments. While it runs, other arrays of the run live beside its arguments (during a rollout, say, optimizer
state and reference model); the sum of both is held against the memory of the device.
"""

import copy
import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from rich.table import Table

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.step.programs import AbstractStep, Program

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
    memory = ProgramMemory(
        name=program.name,
        mend=program.mend,
        arguments=found.argument_size_in_bytes,
        outputs=found.output_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        donated=found.alias_size_in_bytes,
        beside=bytes_beside(program, alive),
    )

    def place(out, sharding):
        return jax.ShapeDtypeStruct(out.shape, out.dtype, sharding=sharding)

    return memory, jax.tree.map(place, lowered.out_info, compiled.output_shardings)


def measure_again(memory: ProgramMemory, outputs, program: Program, alive) -> tuple[ProgramMemory, Any]:
    """What `measure` gave, of the same program with other arrays beside it; its outputs are other arrays, too."""
    return dataclasses.replace(memory, beside=bytes_beside(program, alive)), jax.tree.map(copy.copy, outputs)


def bytes_beside(program: Program, alive) -> int:
    """Bytes a device of what lives while a program runs and is none of its arguments."""
    mine = {id(leaf) for leaf in jax.tree.leaves((program.args, dict(program.kwargs)))}
    return sum(bytes_per_device(leaf) for leaf in jax.tree.leaves((alive, program.beside)) if id(leaf) not in mine)


def bytes_per_device(leaf: jax.ShapeDtypeStruct) -> int:
    """Bytes of the part of an array that one device holds."""
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    itemsize = 8 if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf.dtype.itemsize
    return math.prod(shape) * itemsize


def device_limit(device: Any = None) -> int:
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


def measure_step(step: AbstractStep) -> list[ProgramMemory]:
    """Memory of every program of a step, in their order; compiles all of them, each once."""
    found: dict[str, tuple[ProgramMemory, Any]] = {}

    def compiled(program: Program):
        seen = found.get(program.name)
        found[program.name] = measure_again(*seen, program, step.alive) if seen else measure(program, step.alive)
        return found[program.name][1]

    step.trace(compiled)
    return [memory for memory, _ in found.values()]
