"""Credit by segments: a case worked by hand, a loop over sets of trajectories, and what it must equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.objectives import advantages, make_objective
from iiblpo_jax.objectives.advantage import standardised
from iiblpo_jax.objectives.credit import with_credit
from iiblpo_jax.objectives.credit.tree import tree_advantage

T = 6
FLAT = (-1, 0, 0)


def by_loops(trees, local: float):
    """The formula token by token, from sets of trajectories."""
    reward, keep = np.asarray(trees.rows.reward_R, float), np.asarray(trees.rows.keep_R) > 0
    result = np.zeros((len(reward), T))
    for r in range(len(reward)):
        first = r - r % trees.group
        mine = [x for x in range(first, first + trees.group) if keep[x]]
        mean, std = np.mean(reward[mine]), np.std(reward[mine], ddof=1)
        for t in range(T):
            here = trees.through(r, t)
            before = next((trees.through(r, s) for s in range(t - 1, -1, -1) if trees.through(r, s) != here), None)
            kept = [x for x in here if keep[x]]
            value = np.mean(reward[kept]) if kept else 0.0
            parent = mean
            if before is not None:
                kept = [x for x in before if keep[x]]
                parent = np.mean(reward[kept]) if kept else 0.0
            result[r, t] = (value - mean + local * (value - parent)) / (std + 1e-6)
    return result


def test_by_hand(outcomes):
    """The example of forks.py beside a tree that is all wrong: mean 1/3, variance 4/15 over the six."""
    o = outcomes([1, 1, 0, 0, 0, 0], [0, 3, 3, 0, 2, 2], [6, 5, 5, 6, 6, 6], 6)
    a = tree_advantage(o, parent_J=FLAT, local=1.0)
    std = (4 / 15) ** 0.5
    np.testing.assert_allclose(a[0, :3], 2 * (2 / 3 - 1 / 3) / std, rtol=1e-4)
    np.testing.assert_allclose(a[0, 3:], (1 - 1 / 3 + 1 - 2 / 3) / std, rtol=1e-4)
    np.testing.assert_allclose(a[2, 3:], (0 - 1 / 3 + 0 - 2 / 3) / std, rtol=1e-4)
    np.testing.assert_allclose(a[3, :2], 2 * (0 - 1 / 3) / std, rtol=1e-4)
    np.testing.assert_allclose(a[3, 2:], (0 - 1 / 3) / std, rtol=1e-4)


@pytest.mark.parametrize("local", [0.0, 0.7])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_loops_over_sets_of_trajectories(grow, parent_J, local, seed):
    trees = grow(seed, parent_J)
    found, keep = tree_advantage(trees.rows, parent_J=parent_J, local=local), np.asarray(trees.rows.keep_R) > 0
    np.testing.assert_allclose(np.asarray(found)[keep], by_loops(trees, local)[keep], rtol=1e-4, atol=1e-5)


def test_without_local_credit_the_gradient_is_that_of_whole_trajectories(outcomes):
    """Every shared token gets, over the trajectories that repeat it, the sum of their own advantages."""
    o = outcomes([1, 0, 0, 1, 1, 0], [0, 3, 3, 0, 2, 2], [6, 6, 6, 6, 6, 6], 6)
    a = tree_advantage(o, parent_J=FLAT, local=0.0)
    whole = standardised(o)
    np.testing.assert_allclose(a[:3, :3].sum(0), jnp.full(3, whole[:3].sum()), rtol=1e-4)
    np.testing.assert_allclose(a[:, 3:], jnp.repeat(whole[:, None], 3, 1), rtol=1e-4)


def test_a_group_without_spread_is_exactly_zero(outcomes):
    o = outcomes([1, 1, 1, 1], [0, 2, 0, 3], [6] * 4, 4)
    np.testing.assert_array_equal(tree_advantage(o, parent_J=(-1, 0), local=1.0), 0)


def test_a_method_keeps_its_losses_and_the_self_reward_is_added(outcomes):
    base = make_objective("dapo", max_tokens=T)
    method = with_credit(base, "tree", parent_J=FLAT, local=1.0)
    assert (method.policy_loss, method.aggregate) == (base.policy_loss, base.aggregate)
    o = outcomes([1, 0, 0, 1, 1, 0], [0, 3, 3, 0, 2, 2], [6] * 6, 6, ib_score_R=jnp.array([0.5, 2, -2, 0, 0, 0]))
    found = jax.jit(lambda o: advantages(method, o, reward_coef=0.1))(o)
    plain = tree_advantage(o, parent_J=FLAT, local=1.0)
    np.testing.assert_allclose(found - plain, 0.1 * jnp.array([0.5, 1, -1, 0, 0, 0])[:, None].repeat(T, 1), atol=1e-6)
