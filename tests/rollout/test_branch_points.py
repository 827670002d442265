"""Branch points: hand-worked cases, every policy against a sort, and the statistics of the draw."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.config.defaults import KNOBS
from iiblpo_jax.rollout.branch_points import (
    POLICIES,
    Record,
    branch_points,
    branches_due,
    candidate_mask,
    choose_points,
    weights,
)
from iiblpo_jax.rollout.branching import Branching

ENTROPY = jnp.array([[9.0, 1.0, 5.0, 2.0, 4.0, 3.0, 8.0, 7.0]])


def record(entropy_BT, length_B, stopped_B, begin_B=None, logp_BT=None) -> Record:
    """Roots, unless begin_B says otherwise; log-probs that no policy but `logp` may look at."""
    entropy_BT, length_B = jnp.asarray(entropy_BT), jnp.asarray(length_B)
    return Record(
        entropy_BT=entropy_BT,
        logp_BT=jnp.full_like(entropy_BT, jnp.nan) if logp_BT is None else jnp.asarray(logp_BT),
        length_B=length_B,
        stopped_B=jnp.asarray(stopped_B),
        begin_B=jnp.zeros_like(length_B) if begin_B is None else jnp.asarray(begin_B),
    )


@pytest.mark.parametrize(
    "length, stopped, expected",
    [
        (8, True, [2, 4]),  # tail of min(8, 8/4) = 2 tokens is out, token 0 always is: two highest of 1..5
        (6, False, [2, 4]),  # tail 1: of 1..4
        (3, True, [1]),  # 3/4 = 0 tokens, but the stop token is never a candidate
        (2, True, []),
        (2, False, [1]),
        (1, False, []),
    ],
)
def test_candidates_by_hand(length, stopped, expected):
    mask = candidate_mask(record(ENTROPY, [length], [stopped]), Branching(k=1))[0]
    assert np.flatnonzero(mask).tolist() == expected


@pytest.mark.parametrize(
    "begin, fraction, expected",
    [
        (2, 0.05, [4, 5]),  # of 3..5: token 2 is the branch's first, 6 and 7 are its tail
        (3, 0.05, [4, 5]),
        (4, 0.05, [5]),
        (5, 0.05, []),
        (0, 0.375, [2, 4, 5]),  # 3 of 8 own tokens
        (2, 0.375, [4, 5]),  # 2 of 6
    ],
)
def test_candidates_of_a_branch_are_its_own_tokens(begin, fraction, expected):
    spec = Branching(k=1, fraction=fraction)
    mask = candidate_mask(record(ENTROPY, [8], [True], [begin]), spec)[0]
    assert np.flatnonzero(mask).tolist() == expected


@pytest.mark.parametrize(
    "at, changes, expected",
    [
        ("argmax", {}, [2]),  # 5 nats, of tokens 1 to 5
        ("argmax", {"points": "distinct"}, [2, 4, 5]),
        ("argmax", {"points": "distinct", "per_point": 3}, [2]),
        ("random", {"points": "distinct"}, [1, 2, 3, 4, 5]),
        ("logp", {}, [3]),
        ("logp", {"points": "distinct"}, [1, 3, 5]),
        ("segments", {"segment": 2}, [2]),
        ("segments", {"segment": 2, "points": "distinct"}, [2, 4]),  # 6 is in the tail
        ("segments", {"segment": 6}, []),
        ("segments", {"segment": 1, "points": "distinct"}, [1, 2, 3]),
        ("threshold", {"min_entropy": 2.5}, [2, 4, 5]),
        ("threshold", {"min_entropy": 6.0}, []),
        ("random", {"after": 0.25}, [2, 3, 4, 5]),
        ("random", {"after": 0.6}, [4, 5]),  # floor(.6 * 8) = 4
        ("random", {"after": 0.9}, []),  # that is where its tail begins
        ("argmax", {"after": 0.5}, [4]),
    ],
)
def test_policies_by_hand(at, changes, expected):
    logp = [[-9.0, -0.5, -0.1, -2.0, -0.3, -1.0, -8.0, -7.0]]
    spec = Branching(k=3, at=at, **changes)
    mask = candidate_mask(record(ENTROPY, [8], [True], logp_BT=logp), spec)[0]
    assert np.flatnonzero(mask).tolist() == expected


def test_the_share_that_is_no_candidate_is_of_a_branchs_own_tokens():
    """Of 3 to 7, which is 5 own tokens, the first 2 are left out."""
    mask = candidate_mask(record(ENTROPY, [8], [True], [3]), Branching(k=1, at="random", after=0.4))[0]
    assert np.flatnonzero(mask).tolist() == [5]


def test_config_names_the_policies_there_are():
    assert KNOBS["branch.at"].choices == tuple(POLICIES)


@pytest.mark.parametrize("at", POLICIES)
def test_without_a_candidate_a_branch_begins_where_its_parent_did(at):
    """Parents of 8 tokens that began at 5, 2, 1 and 0, too sure of themselves to be long, and a root of one token."""
    length, begin = jnp.array([8, 3, 2, 2, 1]), jnp.array([5, 2, 1, 0, 0])
    keys, parents = jax.random.split(jax.random.key(0), 5), record(jnp.ones((5, 8)), length, jnp.ones(5, bool), begin)
    points, fallback, elder = branch_points(parents, jnp.ones(5, int), keys, Branching(k=2, at=at, segment=1))
    assert (elder == 1).all()
    assert fallback.all() and points.tolist() == [5, 2, 1, 1, 0]


def points(candidates, spec, n=2_000):
    keys = jax.random.split(jax.random.key(0), n)
    mask = jnp.zeros(8, bool).at[jnp.array(candidates)].set(True)
    return np.asarray(choose_points(jnp.broadcast_to(mask, (n, 8)), keys, spec))


def test_shared_points_are_one_uniform_draw():
    drawn = points([1, 4, 6], Branching(k=3))
    assert (drawn == drawn[:, :1]).all()
    frequency = np.bincount(drawn[:, 0], minlength=8) / len(drawn)
    np.testing.assert_allclose(frequency[[1, 4, 6]], 1 / 3, atol=0.04)


def test_distinct_points_do_not_repeat_and_come_latest_first():
    drawn = points([1, 4, 6, 7], Branching(k=3, points="distinct"))
    assert (np.diff(drawn, axis=1) < 0).all()
    np.testing.assert_allclose(np.bincount(drawn.ravel(), minlength=8)[[1, 4, 6, 7]] / len(drawn), 0.75, atol=0.04)


def test_distinct_points_start_over_when_candidates_run_out():
    drawn = points([2, 5], Branching(k=4, points="distinct"))
    assert (drawn == [5, 5, 2, 2]).all()


@pytest.mark.parametrize("n", [1, 2])
def test_points_are_drawn_in_proportion_to_entropy(n):
    """One of three candidates, or two one after the other; a token that is no candidate has no share."""
    entropy_T = np.array([9.0, 0.5, 0.0, 9.0, 1.0, 9.0, 2.5, 9.0])
    many, spec = 4_000, Branching(k=n, points="distinct", at="proportional")
    mask_BT = jnp.broadcast_to(jnp.zeros(8, bool).at[jnp.array([1, 4, 6])].set(True), (many, 8))
    parents = record(np.broadcast_to(entropy_T, (many, 8)), np.full(many, 8), np.zeros(many), np.zeros(many))
    drawn = choose_points(mask_BT, jax.random.split(jax.random.key(0), many), spec, weights(parents, spec))
    share = np.array([0.5, 1.0, 2.5]) / 4
    wanted = (
        share
        if n == 1
        else share + [sum(share[j] * share[i] / (1 - share[j]) for j in {0, 1, 2} - {i}) for i in (0, 1, 2)]
    )
    np.testing.assert_allclose(np.bincount(np.ravel(drawn), minlength=8)[[1, 4, 6]] / many, wanted, atol=0.03)


def test_branches_that_share_their_point_are_neighbours():
    """Two on each of two points; two of three candidates are drawn, each as often."""
    drawn = points([1, 4, 6], Branching(k=4, points="distinct", per_point=2))
    assert (drawn[:, 0] == drawn[:, 1]).all() and (drawn[:, 2] == drawn[:, 3]).all()
    assert (drawn[:, 1] > drawn[:, 2]).all()
    np.testing.assert_allclose(
        np.bincount(drawn[:, ::2].ravel(), minlength=8)[[1, 4, 6]] / len(drawn), 2 / 3, atol=0.04
    )
    assert (points([5], Branching(k=4, points="distinct", per_point=2)) == 5).all()


def by_sorting(at, spec, entropy_T, logp_T, begin, length, stopped) -> list[int]:
    """The candidates of one parent."""
    tail = max(min(8, length // 4), int(stopped))
    early = int(spec.after * (length - begin) + 1e-6)
    eligible = list(range(begin + max(1, early), length - tail))
    n = 1 if spec.points == "shared" else spec.k // spec.per_point
    if at == "top":
        n = max(2, int(spec.fraction * (length - begin) + 1e-6))
    order = {
        "top": sorted(eligible, key=lambda t: -entropy_T[t]),
        "argmax": sorted(eligible, key=lambda t: -entropy_T[t]),
        "random": eligible,
        "threshold": [t for t in eligible if entropy_T[t] >= spec.min_entropy],
        "proportional": eligible,
        "logp": sorted(eligible, key=lambda t: logp_T[t]),
        "segments": [t for t in eligible if t in range(0, 100, spec.segment)],
    }[at]
    return sorted(order if at in ("random", "threshold", "proportional") else order[:n])


@pytest.mark.parametrize("how", [{"after": 0.3}, {"points": "distinct"}, {"points": "distinct", "per_point": 2}])
@pytest.mark.parametrize("at", POLICIES)
def test_candidates_and_draws_are_those_of_a_sort(at, how):
    """Brute force over roots and branches with many equal entropies and log-probs."""
    rng = np.random.default_rng(0)
    entropy_BT = np.round(rng.exponential(size=(40, 60)), 1).astype(np.float32)  # many ties, many zeros
    logp_BT = -np.round(rng.exponential(size=(40, 60)), 1).astype(np.float32)
    length_B = rng.integers(1, 61, 40)
    begin_B = rng.integers(0, length_B) * rng.integers(0, 2, 40)
    stopped_B = rng.random(40) < 0.5
    spec = Branching(k=4, fraction=0.2, at=at, segment=7, min_entropy=0.3, **how)
    parents, keys = record(entropy_BT, length_B, stopped_B, begin_B, logp_BT), jax.random.split(jax.random.key(2), 40)
    mask_BT = np.asarray(candidate_mask(parents, spec))
    points_BK = np.asarray(choose_points(jnp.array(mask_BT), keys, spec))
    n, used = spec.different_points, 0
    for b in range(40):
        kept = by_sorting(at, spec, entropy_BT[b], logp_BT[b], begin_B[b], length_B[b], stopped_B[b])
        assert np.flatnonzero(mask_BT[b]).tolist() == kept
        if kept:
            u_T = np.asarray(jax.random.uniform(keys[b], (60,)))
            order = sorted(kept, key=lambda t: -u_T[t])
            drawn = sorted((order[i % len(kept)] for i in range(n)), reverse=True)
            assert points_BK[b].tolist() == [t for t in drawn for _ in range(4 // n)]
            used += len(kept) > n
    assert used > 5 or at in ("argmax", "logp", "segments")


@pytest.mark.parametrize("at", POLICIES)
def test_points_lie_among_own_tokens_and_siblings_do_not_rise(at):
    """The two rules of branching.py, on which decoding in place rests."""
    rng = np.random.default_rng(1)
    length_B = rng.integers(1, 41, 60)
    begin_B = rng.integers(0, length_B)
    parents = record(rng.exponential(size=(60, 40)), length_B, rng.random(60) < 0.5, begin_B, -rng.random((60, 40)))
    keys, spec = jax.random.split(jax.random.key(3), 60), Branching(k=3, at=at, points="distinct", segment=3)
    found = [branch_points(parents, jnp.full(60, nth), keys, spec) for nth in range(3)]
    at_KB, fallback_KB, elder_KB = (np.array(x) for x in zip(*found, strict=True))
    np.testing.assert_array_equal(elder_KB, [(at_KB[:n] == at_KB[n]).sum(0) for n in range(3)])
    assert (np.diff(at_KB, axis=0) <= 0).all() and 0 < fallback_KB[0].sum() < 60
    assert ((at_KB > begin_B) & (at_KB < length_B))[~fallback_KB].all()
    assert (at_KB >= begin_B)[fallback_KB].all()


def test_a_sure_root_gets_no_branches():
    """Candidates of 12 tokens are the two highest entropies of tokens 1..8; token 0 and the tail do not count."""
    entropy_BT = jnp.full((3, 12), 0.1).at[0, 4].set(0.5).at[1, 0].set(2.0).at[2, 11].set(2.0)
    spec = Branching(k=3, min_suffix=8, min_entropy=0.5)
    roots = record(entropy_BT, jnp.full(3, 12), jnp.ones(3, bool))
    np.testing.assert_array_equal(branches_due(roots, jnp.ones(3, bool), spec), [3, 0, 0])
    assert spec.may_skip and not spec.asks_answer
    beside = dataclasses.replace(spec, at="segments", segment=3)  # token 3 is no place to hesitate at, 4 is
    np.testing.assert_array_equal(branches_due(roots, jnp.ones(3, bool), beside), [0, 0, 0])
    there = dataclasses.replace(spec, at="segments", segment=4)
    np.testing.assert_array_equal(branches_due(roots, jnp.ones(3, bool), there), [3, 0, 0])


def test_a_solved_root_needs_no_branches():
    right_B, roots = jnp.array([True, False]), record(jnp.ones((2, 12)), jnp.full(2, 12), jnp.ones(2, bool))
    unsolved = Branching(k=3, solved=False)
    np.testing.assert_array_equal(branches_due(roots, right_B, unsolved), [0, 3])
    np.testing.assert_array_equal(branches_due(roots, right_B, Branching(k=3)), [3, 3])
    deep = Branching(k=2, parent="previous", depth=3, solved=False)
    np.testing.assert_array_equal(branches_due(roots, right_B, deep), [0, 2 + 4 + 8])
    assert unsolved.asks_answer and unsolved.may_skip and not Branching(k=3).may_skip


def test_candidates_cover_the_requested_fraction():
    spec = Branching(k=1, fraction=0.1, min_suffix=8)
    mask = candidate_mask(record(jnp.arange(100.0)[None], [100], [True]), spec)[0]
    assert np.flatnonzero(mask).tolist() == list(range(82, 92))  # the last 8 are not eligible, 10 highest of the rest
