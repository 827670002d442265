"""IB-TPO's advantage: by hand, by sets of trajectories, and with one of its terms off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.objectives import advantages, make_objective
from iiblpo_jax.objectives.credit import with_credit
from iiblpo_jax.objectives.credit.ib_tpo import ib_tpo_advantage
from iiblpo_jax.objectives.credit.tree import tree_advantage

T = 6
FLAT = (-1, 0, 0)


def test_by_hand(outcomes):
    """Rewards 1 1 0 and 0 0 0: 1/3 of the prompt is right, 2/3 of the first tree, none of the second."""
    half, quarter = np.log(0.5), np.log(0.25)
    logp = np.full((6, T), half)
    logp[0] = [half, half, half, half, quarter, quarter + half]  # of root 0 behind 3: (1/2 1/4 1/8)^(1/3) = 1/4
    o = outcomes([1, 1, 0, 0, 0, 0], [0, 3, 3, 0, 2, 2], [T] * 6, 6, ref_logp_RT=jnp.asarray(logp, jnp.float32))
    a, std = ib_tpo_advantage(o, parent_J=FLAT, coef=0.1), (4 / 15) ** 0.5
    np.testing.assert_allclose(a[0, :3], (2 / 3 - 1 / 3) / std + 0.1 * (2 - 1.2) / 2, rtol=1e-4)
    np.testing.assert_allclose(a[0, 3:], (1 - 1 / 3) / std + 0.1 * (1.5 - 1.2) / 4, rtol=1e-4)
    np.testing.assert_allclose(a[1, 3:], (1 - 1 / 3) / std + 0.1 * (1.5 - 1.2) / 2, rtol=1e-4)
    np.testing.assert_allclose(a[2, 3:], (0 - 1 / 3) / std + 0.1 * (0 - 1.2) / 2, rtol=1e-4)
    np.testing.assert_allclose(a[3, :2], (0 - 1 / 3) / std + 0.1 * (0 - 1.2) / 2, rtol=1e-4)
    np.testing.assert_allclose(a[3, 2:], (0 - 1 / 3) / std, rtol=1e-4)  # nothing to lose any more


def by_sets(trees, logp_RT, coef):
    """A of the tokens of kept rows, segment by segment."""
    rows = trees.rows
    reward, keep, length = np.asarray(rows.reward_R, float), np.asarray(rows.keep_R) > 0, np.asarray(rows.length_R)
    result = np.zeros((len(reward), T))
    for r in np.flatnonzero(keep):
        first = r - r % trees.group
        group = [x for x in range(first, first + trees.group) if keep[x]]
        if np.ptp(reward[group]) == 0:
            continue
        sets = [sorted(x for x in trees.through(r, t) if keep[x]) for t in range(length[r])]
        before, start = np.mean(reward[group]), 0
        for end in range(1, length[r] + 1):
            if end == length[r] or sets[end] != sets[start]:
                here, likely = np.mean(reward[sets[start]]), np.exp(logp_RT[r, start:end].mean())
                rise = here / before - 1.2 if before > 0 else 0.0
                gain = (here - np.mean(reward[group])) / (np.std(reward[group], ddof=1) + 1e-6)
                result[r, start:end] = gain + coef * rise * likely
                before, start = here, end
    return result


def test_equals_segments_from_sets_of_trajectories(grow, parent_J):
    for seed in range(4):
        trees = grow(seed, parent_J)
        logp_RT = -np.random.default_rng(seed).exponential(size=(trees.rows.count, T))
        rows = trees.rows.replace(ref_logp_RT=jnp.asarray(logp_RT, jnp.float32))
        found = np.asarray(ib_tpo_advantage(rows, parent_J=parent_J, coef=0.5))
        counts = np.asarray((rows.keep_R[:, None] > 0) & (rows.mask_RT > 0))
        np.testing.assert_allclose(found[counts], by_sets(trees, logp_RT, 0.5)[counts], rtol=1e-4, atol=1e-5)


def test_without_the_second_term_it_is_tree_credit_without_siblings(grow, parent_J):
    rows = grow(0, parent_J).rows
    rows = rows.replace(ref_logp_RT=jnp.full(rows.mask_RT.shape, -1.0))
    found, keep = ib_tpo_advantage(rows, parent_J=parent_J, coef=0.0), np.asarray(rows.keep_R) > 0
    np.testing.assert_allclose(found[keep], tree_advantage(rows, parent_J=parent_J, local=0.0)[keep], rtol=1e-5)


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1])
def test_a_method_asks_for_the_reference_and_equal_rewards_teach_nothing(outcomes, reward):
    method = with_credit(make_objective("grpo", max_tokens=T), "ib_tpo", parent_J=FLAT, ib_coef=0.2)
    assert method.needs == ("ref_logp",)
    assert with_credit(make_objective("grpo", max_tokens=T), "tree", parent_J=FLAT).needs == ()
    o = outcomes([reward] * 6, [0, 2, 3, 0, 4, 1], [T] * 6, 6, ref_logp_RT=jnp.zeros((6, T)))
    np.testing.assert_array_equal(jax.jit(lambda o: advantages(method, o))(o), 0)
