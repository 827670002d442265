"""Packing against hand-worked trees and a brute-force count of distinct prefixes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.model.packed.bins import PackedRows, PackSpec, make_packing, pack_spec, take_bin

ROOMY = PackSpec(tokens=32, rows=8, block=4, blocks=16)
#        prompt 1 2, then
ROWS = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 7, 8, 9], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6]]


def pad(rows, width):
    lengths = np.array([len(row) for row in rows], np.int32)
    return np.array([[*row, *[0] * (width - len(row))] for row in rows], np.int32), lengths


def packing_of(rows, *, group, spec=ROOMY, width=8, private=None):
    tokens, lengths = pad(rows, width)
    return jax.jit(lambda t, n, p: make_packing(t, n, group=group, spec=spec, private_N=p))(tokens, lengths, private)


def test_a_node_is_a_position_and_the_token_that_follows():
    packing = packing_of(ROWS, group=4)
    # Row 1 has 3 and its successor 4 in common with row 0, but feeds 4 again: another token follows.
    assert packing.shared_N.tolist() == [0, 3, 4, 5]
    assert packing.path_NC[:, :6].tolist() == [
        [0, 1, 2, 3, 4, 32],
        [0, 1, 2, 5, 6, 7],
        [0, 1, 2, 3, 32, 32],
        [0, 1, 2, 3, 4, 32],
    ]
    assert int(packing.nodes) == 8
    assert int(packing.bins) == 1


def test_rows_of_different_prompts_share_nothing():
    assert packing_of(ROWS, group=2).shared_N.tolist() == [0, 3, 0, 4]


def test_private_positions_are_never_shared():
    never = 99
    assert packing_of(ROWS, group=4, private=np.array([never, never, 2, 3])).shared_N.tolist() == [0, 3, 2, 3]
    # A donor's private nodes serve nobody: row 3 finds only three nodes in row 0 and row 2.
    assert packing_of(ROWS, group=4, private=np.array([3, never, 3, never])).shared_N.tolist() == [0, 3, 3, 3]


def test_an_empty_row_has_no_node():
    packing = packing_of([[], [1, 2, 3], [1], [1, 2, 3]], group=4)
    assert packing.inputs_N.tolist() == [0, 2, 0, 2]
    assert int(packing.nodes) == 2


@pytest.mark.parametrize(
    "spec",
    [
        PackSpec(tokens=7, rows=8, block=4, blocks=16),
        PackSpec(tokens=32, rows=2, block=4, blocks=16),
        PackSpec(tokens=32, rows=8, block=2, blocks=4),
    ],
    ids=["tokens", "rows", "blocks"],
)
def test_a_row_that_does_not_fit_opens_a_bin_with_its_whole_path(spec):
    packing = packing_of(ROWS, group=4, spec=spec)
    bins = packing.bin_N.tolist()
    assert bins == sorted(bins)
    assert bins[-1] > 0
    for b in range(bins[-1] + 1):
        first = bins.index(b)
        assert packing.shared_N[first] == 0
        assert sum(int(packing.inputs_N[n] - packing.shared_N[n]) for n in range(4) if bins[n] == b) <= spec.tokens
        assert bins.count(b) <= spec.rows


@pytest.fixture(scope="module")
def random_rows():
    """Twelve prompts of five rows over three tokens, so that many begin alike."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(12):
        prompt = rng.integers(1, 4, rng.integers(1, 4)).tolist()
        rows += [prompt + rng.integers(1, 4, rng.integers(0, 9)).tolist() for _ in range(5)]
    return rows


@pytest.mark.parametrize("tokens", [12, 40, 1000])
def test_every_bin_holds_the_paths_of_its_rows(random_rows, tokens):
    rows, lengths = pad(random_rows, 12)
    spec = pack_spec(tokens, rows=60, width=12)
    packing = make_packing(jnp.asarray(rows), lengths, group=5, spec=spec)
    seen = []
    for b in range(int(packing.bins)):
        one = jax.tree.map(np.asarray, take_bin(packing, jnp.asarray(rows), b, spec))
        for n, path in zip(one.row_J[one.valid_J], one.path_JC[one.valid_J], strict=True):
            inputs = max(len(random_rows[n]) - 1, 0)
            seen.append(n)
            np.testing.assert_array_equal(one.token_U[path[:inputs]], random_rows[n][:inputs])
            np.testing.assert_array_equal(one.position_U[path[:inputs]], np.arange(inputs))
            assert (path[inputs:] == spec.tokens).all()
        # Query blocks cover every node once, each block within one row.
        nodes = [
            x for start, k in zip(one.block_node_X, one.block_count_X, strict=True) for x in range(start, start + k)
        ]
        assert nodes == list(range(len(nodes)))
        for row, start, k in zip(one.block_row_X, one.block_node_X, one.block_count_X, strict=True):
            assert (one.owner_U[start : start + k] == row).all()
    assert seen == list(range(60))


def test_the_nodes_of_one_large_bin_are_the_distinct_prefixes(random_rows):
    distinct = {(n // 5, *row[: p + 2]) for n, row in enumerate(random_rows) for p in range(len(row) - 1)}
    rows, lengths = pad(random_rows, 12)
    packing = make_packing(
        jnp.asarray(rows), lengths, group=5, spec=PackSpec(tokens=1000, rows=60, block=16, blocks=100)
    )
    assert int(packing.nodes) == len(distinct)


@pytest.mark.parametrize("shards", [1, 3])
def test_collect_brings_results_back_to_their_rows(random_rows, shards):
    rows, lengths = pad(random_rows, 12)
    packed = PackedRows(jnp.asarray(rows), jnp.asarray(lengths), tokens=30, group=5, shards=shards)

    def path_sums(bins):
        tokens_WU1 = jnp.pad(bins.token_U, [(0, 0), (0, 1)])
        return {"sum": jax.vmap(lambda t, path: t[jnp.minimum(path, t.shape[0] - 1)].sum(-1))(tokens_WU1, bins.path_JC)}

    found = packed.collect(path_sums)["sum"]
    assert found.tolist() == [sum(row[:-1]) for row in random_rows]


def test_capacities_hold_a_whole_row():
    spec = pack_spec(10, rows=7, width=900)
    assert spec.tokens == 900
    assert spec.blocks * spec.block >= 900
    assert spec.rows == 4
