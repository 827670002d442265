"""TreeRL: by hand, by a walk along every path, and where a segment is worth what the last one was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.objectives import advantages, make_objective
from iiblpo_jax.objectives.credit import with_credit
from iiblpo_jax.objectives.credit.treerl import treerl_advantage

T = 6
FLAT = (-1, 0, 0)


def test_by_hand(outcomes):
    """Rewards 1 1 0 and 0 0 0: against the five others .8 .8 -.4 and -.4 each; three kept leaves share a prefix."""
    o = outcomes([1, 1, 0, 0, 0, 0], [0, 3, 3, 0, 2, 2], [6, 5, 5, 6, 6, 6], 6)
    a = treerl_advantage(o, parent_J=FLAT)
    first, second = 0.4 / 3**0.5, -0.4 / 3**0.5
    np.testing.assert_allclose(a[:3, :3], 2 * first, rtol=1e-5)
    np.testing.assert_allclose(a[:2, 3:], 0.8 - first + 0.8, rtol=1e-5)
    np.testing.assert_allclose(a[2, 3:], -0.4 - first - 0.4, rtol=1e-5)
    np.testing.assert_allclose(a[3:, :2], 2 * second, rtol=1e-5)
    np.testing.assert_allclose(a[3:, 2:], -0.4 - second - 0.4, rtol=1e-5)


def test_a_segment_worth_what_the_last_was_goes_on_with_its_advantage(outcomes):
    """Leaves 4.5 -1.5 1.5 fifths: their mean and that of the first two are 1.5, and two are kept in both segments."""
    o = outcomes([1, 0, 0.5, 0, 0, 0], [0, 4, 2, 0, 3, 3], [T] * 6, 6, keep_R=jnp.array([1.0, 1, 0, 1, 1, 1]))
    a = treerl_advantage(o, parent_J=FLAT)
    value = 0.3 / 2**0.5
    np.testing.assert_allclose(a[0], [*[2 * value] * 4, *[0.9 - value + 0.9] * 2], rtol=1e-5)
    assert (a[0, 2:4] == a[0, 0]).all()


def walked(trees):
    """Advantages [R,T] along every path, in doubles."""
    reward, keep = np.asarray(trees.rows.reward_R, float), np.asarray(trees.rows.keep_R) > 0
    result, group = np.zeros((len(reward), T)), trees.group
    for r in range(len(reward)):
        prompt = range(r - r % group, r - r % group + group)
        worth = {x: reward[x] - np.mean([reward[y] for y in prompt if y != x]) for x in prompt}
        before = advantage = 0.0
        for t in range(T):
            leaves = trees.through(r, t)
            kept = sum(keep[x] for x in leaves)
            value = sum(worth[x] for x in leaves) / (len(leaves) * max(kept, 1) ** 0.5)
            if abs(value - before) > 1e-9:
                before, advantage = value, (value - before) + value
            result[r, t] = advantage
    return result


def test_equals_a_walk_along_every_path(grow, parent_J):
    inherited = 0
    for seed in range(6):
        trees = grow(seed, parent_J)
        found, expected = np.asarray(treerl_advantage(trees.rows, parent_J=parent_J)), walked(trees)
        keep = np.asarray(trees.rows.keep_R) > 0
        np.testing.assert_allclose(found[keep], expected[keep], rtol=1e-4, atol=1e-5)
        changes = [[trees.through(r, t) != trees.through(r, t - 1) for t in range(1, T)] for r in range(len(keep))]
        inherited += (np.array(changes) & (np.diff(expected) == 0))[keep].sum()
    assert inherited or len(parent_J) == 4  # that rule was among the cases


def test_leaves_that_are_not_kept_count_in_values_and_are_not_learnt_from(outcomes):
    o = outcomes([1, 0, 0, 1], [0, 2, 0, 3], [T] * 4, 4)
    half = o.replace(keep_R=jnp.array([1.0, 0, 1, 1]))
    method = with_credit(make_objective("grpo", max_tokens=T), "treerl", parent_J=(-1, 0))
    all_kept, found = (jax.jit(lambda o: advantages(method, o))(o) for o in (o, half))
    assert not found[1].any()
    np.testing.assert_allclose(found[0, 2:], all_kept[0, 2:], rtol=1e-6)
    np.testing.assert_allclose(all_kept[0, 2:], 4 / 3, rtol=1e-6)  # prefix: 2/3 and -2/3 make 0


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1])
def test_equal_rewards_are_exactly_zero(outcomes, reward):
    o = outcomes([reward] * 6, [0, 2, 3, 0, 4, 1], [T] * 6, 6)
    np.testing.assert_array_equal(treerl_advantage(o, parent_J=FLAT), 0)
