"""Bytes of compiled programs against bytes counted by hand; the limit; the sentence that says what to turn."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console

from iiblpo_jax import InputError
from iiblpo_jax.planning.memory import (
    ProgramMemory,
    bytes_per_device,
    check_fits,
    device_limit,
    measure,
    measure_step,
    memory_table,
)
from iiblpo_jax.step.programs import Program, abstract_of

F32 = 4


def struct(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def program(name="update", mend="lower update.microbatch", **fields):
    sizes = dict.fromkeys(("arguments", "outputs", "temporaries", "donated", "beside"), 0)
    return ProgramMemory(name=name, mend=mend, **sizes | fields)


def test_arguments_outputs_and_what_lives_beside_are_counted_once():
    x, y, other = struct(128, 64), struct(64, 32), struct(1000)
    memory, out = measure(Program("product", "", jax.jit(jnp.matmul), (x, y)), {"x": x, "other": other})
    assert memory.arguments == F32 * (128 * 64 + 64 * 32)
    assert memory.outputs == F32 * 128 * 32 and memory.donated == 0
    assert memory.beside == F32 * 1000  # x is an argument already
    assert memory.peak == memory.arguments + memory.outputs + memory.temporaries + memory.beside
    assert (out.shape, out.dtype) == ((128, 32), jnp.float32)


def test_a_donated_argument_is_the_place_of_its_output():
    x = struct(256, 256)
    memory, _ = measure(Program("add", "", jax.jit(lambda x: x + 1, donate_argnums=0), (x,)), ())
    assert memory.donated == memory.outputs == F32 * 256 * 256
    assert memory.peak == memory.arguments + memory.temporaries


def test_a_program_that_a_step_runs_twice_is_compiled_once_and_counts_what_is_kept():
    """As in a step with refills: what came of the first call lies beside the second one."""
    calls = []

    @jax.jit
    def double(x):
        calls.append(1)  # while it is traced
        return {"a": 2 * x, "b": x[0]}

    class Step:
        alive = struct(1000)

        def trace(self, call):
            kept = call(Program("double", "", double, (struct(128, 64),)))
            fresh = call(Program("double", "", double, (struct(128, 64),), beside=kept))
            call(Program("sum", "", jax.jit(lambda x, y: x["a"] + y["a"]), (kept, fresh)))

    twice, total = measure_step(Step())
    assert (twice.name, total.name, calls) == ("double", "sum", [1])
    assert twice.beside == F32 * (1000 + 128 * 64 + 64) and twice.outputs >= F32 * (128 * 64 + 64)
    assert total.arguments >= 2 * F32 * 128 * 64 and total.beside == F32 * 1000


def test_temporaries_are_seen():
    n = 512
    grows = jax.jit(lambda x: jnp.sort(x[:, None] * x[None], axis=0)[0].sum())
    memory, _ = measure(Program("outer", "", grows, (struct(n),)), ())
    assert memory.temporaries >= F32 * n * n


def test_a_sharded_array_counts_by_its_part():
    mesh = jax.make_mesh((1,), ("data",))
    place = NamedSharding(mesh, PartitionSpec("data"))
    whole = jax.device_put(jnp.zeros((8, 3)), place)
    abstract = abstract_of(
        {"whole": whole, "numpy": np.zeros(5, np.int32), "loose": jnp.zeros(2), "key": jax.random.key(0)}
    )
    assert abstract["whole"].sharding == place
    assert abstract["numpy"].sharding is None and abstract["loose"].sharding is None
    assert {name: bytes_per_device(x) for name, x in abstract.items()} == {
        "whole": 96,
        "numpy": 20,
        "loose": 8,
        "key": 8,
    }


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"arguments": 60, "temporaries": 60}, "update needs .* lower update.microbatch"),
        ({"arguments": 60, "beside": 50}, "update needs .*raise mesh.fsdp or mesh.tensor"),
    ],
)
def test_too_much_is_refused_with_the_knob(fields, words):
    fits = program("rollout", "lower rollout.slots", arguments=100)
    check_fits([fits, program(arguments=100)], 100)
    with pytest.raises(InputError, match=words):
        check_fits([fits, program(**fields)], 100)


def test_the_worst_program_is_the_one_that_is_named():
    with pytest.raises(InputError, match=r"rollout needs .* lower rollout\.slots"):
        check_fits([program(temporaries=150), program("rollout", "lower rollout.slots", temporaries=200)], 100)


def test_the_limit_is_the_allocators_or_the_machines():
    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    assert device_limit(Device({"bytes_limit": 7})) == 7
    assert device_limit(Device(None)) == device_limit() > 2**28


def test_the_table():
    out = io.StringIO()
    Console(file=out, width=100).print(memory_table([program(arguments=3 * 2**20, beside=2**19)], 2**30))
    [row] = [line for line in out.getvalue().splitlines() if "update" in line]
    assert "1,024" in out.getvalue() and row.replace("│", " ").split() == [
        "update",
        "3.0",
        "0.0",
        "0.0",
        "0.0",
        "0.5",
        "3.5",
    ]
