"""FR3E's modulation: by hand, by sets of trajectories, and what it leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np

from iiblpo_jax.objectives import advantages, make_objective
from iiblpo_jax.objectives.advantage import centred
from iiblpo_jax.objectives.credit import with_credit
from iiblpo_jax.objectives.credit.fr3e import fr3e_advantage

T = 6


def test_by_hand(outcomes):
    """A base that is right and branches at 2 (wrong) and 4 (right), and one without branches that is wrong.

    The prompt's mean is 1/2, 2/3 of what passes token 0 and all of what passes token 2 is right.
    """
    o = outcomes([1, 1, 0, 0, 0, 0], [0, 4, 2, 0, 0, 0], [T] * 6, 6, keep_R=jnp.array([1.0, 1, 1, 1, 0, 0]))
    up, further = np.exp(1 / 2 - 2 / 3), np.exp(2 / 3 - 1)
    expected = [[up, up, further, further, 1, 1], [up, up, further, further, 1, 1], [up, up, 1, 1, 1, 1], [1] * 6]
    ones = fr3e_advantage(o, jnp.ones(6), parent_J=(-1, 0, 0))
    np.testing.assert_allclose(ones[:4], expected, rtol=1e-6)
    plain = centred(o)
    np.testing.assert_allclose(
        fr3e_advantage(o, plain, parent_J=(-1, 0, 0))[:4], plain[:4, None] * np.array(expected), rtol=1e-6
    )


def by_sets(trees, plain):
    """A' of kept rows, block by block."""
    reward, keep = np.asarray(trees.rows.reward_R, float), np.asarray(trees.rows.keep_R) > 0
    result = np.zeros((len(reward), T))
    for r in np.flatnonzero(keep):
        first = r - r % trees.group
        states = [[x for x in range(first, first + trees.group) if keep[x]]]  # of the prompt, then of each block
        block_T = []
        for t in range(T):
            through = sorted(x for x in trees.through(r, t) if keep[x])
            if t == 0 or through != states[-1]:
                states.append(through)
            block_T.append(len(states) - 1)
        value = [np.mean(reward[state]) for state in states]
        for t, j in enumerate(block_T):
            result[r, t] = plain[r] / (np.exp(value[j] - value[j - 1]) if j < len(states) - 1 else 1.0)
    return result


def test_equals_blocks_from_sets_of_trajectories(grow, parent_J):
    for seed in range(4):
        trees = grow(seed, parent_J)
        plain, keep = np.random.default_rng(seed).normal(size=4 * len(parent_J)), np.asarray(trees.rows.keep_R) > 0
        found = np.asarray(fr3e_advantage(trees.rows, jnp.asarray(plain), parent_J=parent_J))
        np.testing.assert_allclose(found[keep], by_sets(trees, plain)[keep], rtol=1e-4, atol=1e-5)


def test_without_branches_it_is_the_method_and_signs_always_stay(outcomes, grow):
    method = make_objective("grpo", max_tokens=T)
    o = outcomes([1, 0, 0, 1, 1, 1], [0] * 6, [T] * 6, group=3)
    alone = with_credit(method, "fr3e", parent_J=(-1,))
    np.testing.assert_array_equal(advantages(alone, o), advantages(method, o)[:, None].repeat(T, 1))
    trees = grow(0, (-1, 0, 0, 0))
    branched = with_credit(method, "fr3e", parent_J=(-1, 0, 0, 0))
    found, plain = jax.jit(lambda o: advantages(branched, o))(trees.rows), advantages(method, trees.rows)
    np.testing.assert_array_equal(np.sign(found), np.sign(plain)[:, None].repeat(T, 1))
    assert (jnp.abs(found - plain[:, None]) > 0.01).any()
