"""The CUDA kernels of path attention: interpreted against the plain form, lowered for CUDA without a GPU, split."""

import functools
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.model.packed import attention as path_attention
from iiblpo_jax.model.packed import pallas as pallas_attention
from iiblpo_jax.model.packed.bins import PackedRows, pack_spec

BLOCK = pack_spec(90, rows=8, width=40).block


@functools.cache
def pack(shards: int = 1):
    """First bins of prompts with four rows each; a row begins as the one before it, for a random number of tokens."""
    rng, rows = np.random.default_rng(1), np.zeros((8, 40), np.int32)
    lengths = np.array([40, 37, 0, 21, 40, 12, 33, 1])
    for n, length in enumerate(lengths):
        rows[n, :length] = rng.integers(1, 3, length)
        if n % 4:
            alike = rng.integers(0, min(lengths[n - 1], length) + 1)
            rows[n, :alike] = rows[n - 1, :alike]

    def packed(rows, lengths):
        return PackedRows(rows, lengths, tokens=90, group=4, shards=shards)

    return jax.jit(lambda *x: packed(*x).bins(0))(rows, lengths)


def compute(path_attend, window, *, heads, width, dtype):
    """Gradients of a weighted sum of out and norm with respect to q, k, v, and out and norm."""
    bins = pack()
    (w, u), (g, r) = bins.token_U.shape, heads
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = [(g, r, width), (g, width), (g, width)]
    q, k, v = (jax.random.normal(key, (w, u, *s)).astype(dtype) for key, s in zip(keys, shapes, strict=False))
    weigh_out, weigh_norm = jax.random.normal(keys[3], q.shape), jax.random.normal(keys[4], q.shape[:-1])

    def loss(q, k, v):
        out, norm = path_attend(q, k, v, bins, BLOCK, window)
        return (out * weigh_out).sum() + (norm * weigh_norm).sum(), (out, norm)

    gradients, results = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
    return [np.asarray(x, np.float32) for x in (*gradients, *results)]


@pytest.mark.parametrize(
    ("window", "heads", "width", "dtype", "atol"),
    [
        (None, (2, 2), 64, jnp.float32, 2e-5),
        (5, (1, 3), 64, jnp.float32, 2e-5),
        (None, (2, 1), 128, jnp.bfloat16, 0.06),  # a unit in the last place of gradients up to 8
    ],
)
def test_values_and_gradients_are_those_of_the_plain_form(monkeypatch, window, heads, width, dtype, atol):
    if jax.default_backend() == "cpu":  # several tiles a block and a path; a GPU needs 16 and multiplies in TF32
        for name, size in {"QUERIES": 16, "QUERIES_BACKWARD": 8, "KEYS": 8, "WIDE": 512}.items():
            monkeypatch.setattr(pallas_attention, name, size)
    else:
        atol = 0.06
    case = {"heads": heads, "width": width, "dtype": dtype}
    found = compute(pallas_attention.path_attend, window, **case)
    expected = compute(path_attention.path_attend, window, **case)
    for name, a, b in zip(("dq", "dk", "dv", "out", "norm"), found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=atol, err_msg=name)
        assert np.abs(b).max() > 0.5
    past_last = np.arange(found[0].shape[1]) >= np.asarray(pack().block_count_X.sum())
    assert past_last.any() and not any(x[0, past_last].any() for x in found)


def test_tables_say_which_queries_see_which_keys():
    """Two rows share nodes 0-2; row 0 goes on with 3 and 4, row 1 with 5; tiles hold two nodes."""
    path_JC = jnp.array([[0, 1, 2, 3, 4], [0, 1, 2, 5, 9]])
    blocks_X4 = jnp.array([[0, 0, 0, 4], [0, 4, 4, 1], [1, 5, 3, 1], [0, 9, 9, 0]])  # row, node, position, count
    tiles, size = pallas_attention._divided(blocks_X4[None], 4, 2)
    assert size == 2
    np.testing.assert_array_equal(
        tiles[0, :, 1:], [[0, 0, 2], [2, 2, 2], [4, 4, 1], [6, 6, 0], [5, 3, 1], [7, 5, 0], [9, 9, 0], [11, 11, 0]]
    )
    seers_of = jax.jit(lambda window: pallas_attention._seers(tiles, 2, tiles, path_JC[None], window), static_argnums=0)
    seers, number, shared = seers_of(None)
    np.testing.assert_array_equal(shared[0, :5], [[2, 2], [2, 1], [1, 0], [0, 0], [0, 1]])
    np.testing.assert_array_equal(number[0], [4, 3, 1, 0, 1, 0, 0, 0])
    assert seers[0, 0, :4].tolist() == [0, 1, 2, 4]  # both rows, later tiles
    assert seers[0, 1, :3].tolist() == [1, 2, 4]
    assert (seers[0, 2, 0], seers[0, 4, 0]) == (2, 4)  # own nodes of one row are seen by themselves
    np.testing.assert_array_equal(seers_of(2)[1][0, :5], [2, 3, 1, 0, 1])


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend:DeprecationWarning")
@pytest.mark.parametrize(
    ("heads", "width", "window", "dtype"), [((4, 7), 128, None, "bfloat16"), ((2, 1), 64, 1024, "float32")]
)
def test_lowers_for_cuda_without_a_gpu(heads, width, window, dtype):
    (g, r), u = heads, 8192

    def loss(q, k, v, rows, lengths):
        packed = PackedRows(rows, lengths, tokens=u, group=8)
        out, norm = pallas_attention.path_attend(q, k, v, packed.bins(0), packed.spec.block, window)
        return out.astype(jnp.float32).sum() + norm.sum()

    shapes = [((1, u, g, r, width), dtype), ((1, u, g, width), dtype), ((1, u, g, width), dtype)]
    shapes += [((64, 6144), "int32"), ((64,), "int32")]
    gpu = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=gpu)):
        traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*(jax.ShapeDtypeStruct(*s) for s in shapes))
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert len(re.findall(r'custom_call @"?__gpu\$xla.gpu.triton', text)) == 3
    gathers = [line for line in text.splitlines() if "stablehlo.gather" in line]
    assert gathers and all("f32" not in line and "bf16" not in line for line in gathers)  # no copy of keys or values


FOUR = """
    import re, jax, jax.numpy as jnp, numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec
    from iiblpo_jax.model.packed import pallas as pallas_attention
    from test_pallas import BLOCK, pack

    mesh = jax.make_mesh((2, 1, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    bins = pack(shards=2)
    q, k, v = (jax.random.normal(jax.random.key(i), (*bins.token_U.shape, *s)) for i, s in
               enumerate([(2, 2, 4), (2, 4), (2, 4)]))
    f = jax.jit(jax.value_and_grad(
        lambda q, k, v, bins: jnp.sin(pallas_attention.path_attend(q, k, v, bins, BLOCK, None)[0]).sum(),
        (0, 1, 2)))
    put = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, PartitionSpec(("data", "fsdp"), *axes)))
    split = *(put(x, None, "tensor") for x in (q, k, v)), jax.tree.map(put, bins)
    program = f.lower(*split).compile()
    assert not re.findall("all-gather|all-to-all|collective-permute", program.as_text())
    for a, b in zip(jax.tree.leaves(program(*split)), jax.tree.leaves(f(q, k, v, bins)), strict=True):
        np.testing.assert_allclose(a, np.asarray(b), atol=2e-5)
        assert a.ndim == 0 or a.sharding.spec == PartitionSpec("data", None, "tensor"), a.sharding
"""


def test_bins_and_heads_stay_on_their_devices(run_script):
    run_script(FOUR, devices=4, PYTHONPATH=os.pathsep.join([os.path.dirname(__file__), os.getcwd()]))


@pytest.mark.parametrize(
    ("backend", "width", "words"),
    [
        ("tpu", 128, "this is a TPU; use attention.impl=blocks"),
        ("gpu", 96, "96; use attention.impl=blocks"),
        ("gpu", 8, "8; use attention.impl=blocks"),
    ],
)
def test_refused_where_it_cannot_run(monkeypatch, backend, width, words):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    with pytest.raises(InputError, match=words):
        path_attention.implementation("pallas", width)
    assert path_attention.implementation("blocks", width) is path_attention.path_attend


def test_chosen_by_name():
    assert path_attention.implementation("pallas", 128) is pallas_attention.path_attend
