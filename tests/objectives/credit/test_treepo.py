"""TreePO's advantage: by hand, by sets of trajectories, and without trees."""

import jax.numpy as jnp
import numpy as np

from iiblpo_jax.objectives import advantages, make_objective
from iiblpo_jax.objectives.credit import with_credit
from iiblpo_jax.objectives.credit.treepo import treepo_advantage
from iiblpo_jax.objectives.reinforce_pp import global_advantage_over_groups

T = 6
FLAT = (-1, 0, 0)


def test_by_hand(outcomes):
    """Rewards 1 1 0 and 0 0 0. Against the prompt 2/3 2/3 -1/3 and -1/3 each, against the tree 1/3 1/3 -2/3 and 0."""
    o = outcomes([1, 1, 0, 0, 0, 0], [0, 3, 3, 0, 2, 2], [T] * 6, 6)
    gain = np.array([1 / 2, 1 / 2, -1 / 2, -1 / 6, -1 / 6, -1 / 6])  # sums to 0; squares to 5/6
    expected = gain / (6 * (5 / 6) / 35) ** 0.5
    np.testing.assert_allclose(treepo_advantage(o, parent_J=FLAT), expected, rtol=1e-5)


def by_sets(trees):
    """Advantages of kept rows: the prompt, and every set of two or more that somebody shares a token with."""
    rows, keep = trees.rows, np.asarray(trees.rows.keep_R) > 0
    reward, tokens = np.asarray(rows.reward_R, float), np.asarray(rows.mask_RT).sum(1) * keep
    gain = np.zeros(len(reward))
    for r in np.flatnonzero(keep):
        first = r - r % trees.group
        groups = [[x for x in range(first, first + trees.group) if keep[x]]]
        groups += {tuple(sorted(x for x in trees.through(r, t) if keep[x])) for t in range(T)}
        gain[r] = np.mean([reward[r] - np.mean(reward[list(g)]) for n, g in enumerate(groups) if n == 0 or len(g) > 1])
    mean = (tokens * gain).sum() / tokens.sum()
    return (gain - mean) / ((tokens * (gain - mean) ** 2).sum() / (tokens.sum() - 1)) ** 0.5


def test_equals_means_over_sets_of_trajectories(grow, parent_J):
    for seed in range(4):
        trees = grow(seed, parent_J)
        keep = np.asarray(trees.rows.keep_R) > 0
        found = np.asarray(treepo_advantage(trees.rows, parent_J=parent_J))
        np.testing.assert_allclose(found[keep], by_sets(trees)[keep], rtol=1e-4, atol=1e-5)


def test_with_the_prompt_alone_it_is_reinforce_pp_baseline(outcomes):
    """Roots, or branches that begin at the first token; some not kept. To the bit."""
    rng = np.random.default_rng(0)
    keep_R = jnp.asarray(rng.integers(0, 3, 12) > 0, jnp.float32)
    o = outcomes(rng.random(12), [0] * 12, rng.integers(1, T + 1, 12), 4, keep_R=keep_R)
    for parent_J in ((-1,), (-1, 0), (-1, 0, 0, 0), (-1, 0, 1, 2)):
        np.testing.assert_array_equal(treepo_advantage(o, parent_J=parent_J), global_advantage_over_groups(o))


def test_prompts_without_spread_teach_nothing(outcomes):
    """Means of equal partial credits round; whitening must not blow that up."""
    o = outcomes([0.1] * 6 + [0.7] * 6, [0, 3, 4, 0, 2, 1] * 2, [T] * 12, 6)
    method = with_credit(make_objective("dapo", max_tokens=T), "treepo", parent_J=FLAT)
    np.testing.assert_array_equal(advantages(method, o), 0)
