"""Branch points: hand-worked cases and the statistics of the draw."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.rollout.branching import Branching, branch_points, branches_due, candidate_mask, choose_points

ENTROPY = jnp.array([[9.0, 1.0, 5.0, 2.0, 4.0, 3.0, 8.0, 7.0]])


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
    mask = candidate_mask(ENTROPY, jnp.array([length]), jnp.array([stopped]), Branching(k=1))[0]
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
    spec, length = Branching(k=1, fraction=fraction), jnp.array([8])
    mask = candidate_mask(ENTROPY, length, jnp.array([True]), spec, jnp.array([begin]))[0]
    assert np.flatnonzero(mask).tolist() == expected


def test_without_a_candidate_a_branch_begins_where_its_parent_did():
    """Parents of 8 tokens that began at 5, 2, 1 and 0, too sure of themselves to be long, and a root of one token."""
    length, begin = jnp.array([8, 3, 2, 2, 1]), jnp.array([5, 2, 1, 0, 0])
    keys, stopped = jax.random.split(jax.random.key(0), 5), jnp.ones(5, bool)
    at, fallback = branch_points(jnp.ones((5, 8)), length, stopped, begin, jnp.zeros(5, int), keys, Branching(k=2))
    assert fallback.all() and at.tolist() == [5, 2, 1, 1, 0]


def test_numbers_of_a_tree_of_two_on_two():
    """Trajectories 7 to 13 are a tree of 0 - (1 - (2, 3), 4 - (5, 6))."""
    spec = Branching(k=2, parent="previous", depth=2)
    assert (spec.tree_size, spec.branches, spec.subtree, spec.levels) == (7, 6, 3, 2)
    assert spec.grows_on(jnp.arange(7, 14)).tolist() == [-1, 7, 8, 8, 7, 11, 11]
    assert spec.nth(jnp.arange(7, 14)).tolist() == [0, 0, 0, 1, 1, 0, 1]
    flat = Branching(k=2, depth=5)  # with parent = root, depth means nothing
    assert (flat.tree_size, flat.subtree, flat.levels) == (3, 1, 1)
    assert flat.grows_on(jnp.arange(3)).tolist() == [-1, 0, 0]
    none = Branching(parent="previous")
    assert (none.tree_size, none.branches, none.levels) == (1, 0, 0)


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


def test_candidates_and_draws_are_those_of_a_sort():
    """Brute force over rows with many equal entropies."""
    rng = np.random.default_rng(0)
    entropy_BT = np.round(rng.exponential(size=(40, 60)), 1).astype(np.float32)  # many ties, many zeros
    length_B = rng.integers(1, 61, 40)
    stopped_B = rng.random(40) < 0.5
    spec = Branching(k=4, fraction=0.2, points="distinct")
    mask_BT = np.asarray(candidate_mask(jnp.array(entropy_BT), jnp.array(length_B), jnp.array(stopped_B), spec))
    keys = jax.random.split(jax.random.key(2), 40)
    points_BK = np.asarray(choose_points(jnp.array(mask_BT), keys, spec))
    for b, (entropy_T, length, stopped) in enumerate(zip(entropy_BT, length_B, stopped_B, strict=True)):
        tail = max(min(8, length // 4), int(stopped))
        eligible = sorted(range(1, length - tail), key=lambda t: -entropy_T[t])
        kept = sorted(eligible[: max(2, int(0.2 * length + 1e-6))])
        assert np.flatnonzero(mask_BT[b]).tolist() == kept
        if kept:
            u_T = np.asarray(jax.random.uniform(keys[b], (60,)))
            order = sorted(kept, key=lambda t: -u_T[t])
            assert points_BK[b].tolist() == sorted((order[i % len(kept)] for i in range(4)), reverse=True)


def test_a_sure_root_gets_no_branches():
    """Candidates of 12 tokens are the two highest entropies of tokens 1..8; token 0 and the tail do not count."""
    entropy_BT = jnp.full((3, 12), 0.1).at[0, 4].set(0.5).at[1, 0].set(2.0).at[2, 11].set(2.0)
    spec = Branching(k=3, min_suffix=8, min_entropy=0.5)
    due_B = branches_due(entropy_BT, jnp.full(3, 12), jnp.ones(3, bool), jnp.ones(3, bool), spec)
    np.testing.assert_array_equal(due_B, [3, 0, 0])
    assert spec.may_skip and not spec.asks_answer


def test_a_solved_root_needs_no_branches():
    right_B, steady = jnp.array([True, False]), (jnp.ones((2, 12)), jnp.full(2, 12), jnp.ones(2, bool))
    unsolved = Branching(k=3, solved=False)
    np.testing.assert_array_equal(branches_due(*steady, right_B, unsolved), [0, 3])
    np.testing.assert_array_equal(branches_due(*steady, right_B, Branching(k=3)), [3, 3])
    deep = Branching(k=2, parent="previous", depth=3, solved=False)
    np.testing.assert_array_equal(branches_due(*steady, right_B, deep), [0, 2 + 4 + 8])
    assert unsolved.asks_answer and unsolved.may_skip and not Branching(k=3).may_skip
