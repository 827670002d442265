"""Credit along trees: a case worked by hand, a loop over pairs of trajectories, and what it must equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.objectives import Rows, advantages, make_objective, with_tree_credit
from iiblpo_jax.objectives.advantage import standardised
from iiblpo_jax.objectives.tree import forks, sibling_advantage, tree_advantage

T = 6
FLAT = (-1, 0, 0)
SHAPES = {
    "3": (-1, 0, 0, 0),
    "1 on 1 on 1": (-1, 0, 1, 2),
    "2 on 2": (-1, 0, 1, 1, 0, 4, 4),
    "2 on 2 on 2": (-1, 0, 1, 2, 2, 1, 5, 5, 0, 8, 9, 9, 8, 12, 12),
}


def outcomes(reward_R, branch_at_R, length_R, group, **fields):
    r = len(reward_R)
    mask_RT = jnp.arange(T) < jnp.asarray(length_R)[:, None]
    zero_R, zero_RT = jnp.zeros(r), jnp.zeros((r, T))
    rows = Rows(
        tokens_RC=jnp.ones((r, 1 + T), int),
        prompt_len_R=jnp.ones(r, int),
        length_R=jnp.asarray(length_R),
        mask_RT=mask_RT,
        own_mask_RT=mask_RT,
        raw_logp_RT=zero_RT,
        reward_R=jnp.asarray(reward_R, jnp.float32),
        correct_R=zero_R,
        group_R=jnp.arange(r) // group,
        trajectory_R=jnp.arange(r),
        parent_R=jnp.arange(r),
        branch_at_R=jnp.asarray(branch_at_R),
        keep_R=zero_R == 0,
        ib_score_R=zero_R,
        advantage_R=zero_R,
    )
    return rows.replace(**fields)


def shared(own_from, parent_J, a, b, t):
    """Whether trajectories a and b of one tree have token t in common, by following both to the root."""

    def owner(j):  # of token t on the path of trajectory j
        while j and t < own_from[j]:
            j = parent_J[j]
        return j

    return owner(a) == owner(b)


def by_loops(o: Rows, parent_J, group: int, local: float):
    """The formula token by token, from sets of trajectories."""
    tree = len(parent_J)
    reward, at = np.asarray(o.reward_R, float), np.asarray(o.branch_at_R)
    keep = np.asarray(o.keep_R) > 0
    result = np.zeros((len(reward), T))
    for first in range(0, len(reward), group):
        mine = [r for r in range(first, first + group) if keep[r]]
        mean, std = np.mean(reward[mine]), np.std(reward[mine], ddof=1)
        for r in range(first, first + group):
            root = r - r % tree

            def through(t, r=r, root=root):
                inside = range(root, root + tree)
                return {x for x in inside if shared(at[root : root + tree], parent_J, r - root, x - root, t)}

            for t in range(T):
                here = through(t)
                before = next((through(s) for s in range(t - 1, -1, -1) if through(s) != here), None)
                kept = [x for x in here if keep[x]]
                value = np.mean(reward[kept]) if kept else 0.0
                parent = mean
                if before is not None:
                    kept = [x for x in before if keep[x]]
                    parent = np.mean(reward[kept]) if kept else 0.0
                result[r, t] = (value - mean + local * (value - parent)) / (std + 1e-6)
    return result


def test_by_hand():
    """The module's example beside a tree that is all wrong: mean 1/3, variance 4/15 over the six."""
    o = outcomes([1, 1, 0, 0, 0, 0], [0, 3, 3, 0, 2, 2], [6, 5, 5, 6, 6, 6], 6)
    a = tree_advantage(o, parent_J=FLAT, local=1.0)
    std = (4 / 15) ** 0.5
    np.testing.assert_allclose(a[0, :3], 2 * (2 / 3 - 1 / 3) / std, rtol=1e-4)
    np.testing.assert_allclose(a[0, 3:], (1 - 1 / 3 + 1 - 2 / 3) / std, rtol=1e-4)
    np.testing.assert_allclose(a[2, 3:], (0 - 1 / 3 + 0 - 2 / 3) / std, rtol=1e-4)
    np.testing.assert_allclose(a[3, :2], 2 * (0 - 1 / 3) / std, rtol=1e-4)
    np.testing.assert_allclose(a[3, 2:], (0 - 1 / 3) / std, rtol=1e-4)


def branch_points(rng, parent_J, trees):
    """Random points, each among the parent's own tokens or, as of a resample, where the parent began."""
    at_NJ = np.zeros((trees, len(parent_J)), int)
    for j, parent in enumerate(parent_J[1:], start=1):
        at_NJ[:, j] = rng.integers(np.maximum(at_NJ[:, parent], 1), T)
    return at_NJ


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("local", [0.0, 0.7])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_loops_over_sets_of_trajectories(shape, local, seed):
    rng, parent_J = np.random.default_rng(seed), SHAPES[shape]
    at = branch_points(rng, parent_J, trees=4).ravel()
    r, group = len(at), 2 * len(parent_J)
    o = outcomes(rng.integers(0, 2, r), at, np.full(r, T), group, keep_R=jnp.asarray(rng.integers(0, 4, r) > 0))
    found = tree_advantage(o, parent_J=parent_J, local=local)
    keep = np.asarray(o.keep_R)
    np.testing.assert_allclose(np.asarray(found)[keep], by_loops(o, parent_J, group, local)[keep], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_two_trajectories_part_where_their_paths_do(shape):
    """Explicit paths: who said each token. A trajectory never parts from itself."""
    rng, parent_J = np.random.default_rng(2), SHAPES[shape]
    at_NJ = branch_points(rng, parent_J, trees=20)
    fork_NJJ = np.asarray(forks(jnp.asarray(at_NJ), parent_J))
    for at_J, fork_JJ in zip(at_NJ, fork_NJJ, strict=True):
        for a in range(len(parent_J)):
            for b in range(len(parent_J)):
                alike = [shared(at_J, parent_J, a, b, t) for t in range(T)]
                assert min(fork_JJ[a, b], T) == (alike.index(False) if False in alike else T)
                assert (fork_JJ[a, b] > T) == (a == b)


def test_forks_of_a_chain_by_hand():
    fork = forks(jnp.array([[0, 2, 4, 5]]), SHAPES["1 on 1 on 1"])[0]
    never = np.iinfo(np.int32).max
    np.testing.assert_array_equal(fork, [[never, 2, 2, 2], [2, never, 4, 4], [2, 4, never, 5], [2, 4, 5, never]])


def test_forks_of_two_on_two_by_hand():
    """0 - (1 at 3 - (2 at 5, 3 at 4), 4 at 2 - (5 at 4, 6 at 3)): 2 and 3 part at 4, 2 and 5 at 2."""
    fork = np.asarray(forks(jnp.array([[0, 3, 5, 4, 2, 4, 3]]), SHAPES["2 on 2"])[0])
    assert (fork[2, 3], fork[1, 2], fork[0, 2], fork[2, 5], fork[4, 5], fork[5, 6]) == (4, 5, 3, 2, 4, 3)


def test_without_local_credit_the_gradient_is_that_of_whole_trajectories():
    """Every shared token gets, over the trajectories that repeat it, the sum of their own advantages."""
    o = outcomes([1, 0, 0, 1, 1, 0], [0, 3, 3, 0, 2, 2], [6, 6, 6, 6, 6, 6], 6)
    a = tree_advantage(o, parent_J=FLAT, local=0.0)
    whole = standardised(o)
    np.testing.assert_allclose(a[:3, :3].sum(0), jnp.full(3, whole[:3].sum()), rtol=1e-4)
    np.testing.assert_allclose(a[:, 3:], jnp.repeat(whole[:, None], 3, 1), rtol=1e-4)


def test_a_group_without_spread_is_exactly_zero():
    o = outcomes([1, 1, 1, 1], [0, 2, 0, 3], [6] * 4, 4)
    np.testing.assert_array_equal(tree_advantage(o, parent_J=(-1, 0), local=1.0), 0)


def test_a_method_keeps_its_losses_and_the_self_reward_is_added():
    base = make_objective("dapo", max_tokens=T)
    method = with_tree_credit(base, parent_J=FLAT, local=1.0)
    assert (method.policy_loss, method.aggregate) == (base.policy_loss, base.aggregate)
    o = outcomes([1, 0, 0, 1, 1, 0], [0, 3, 3, 0, 2, 2], [6] * 6, 6, ib_score_R=jnp.array([0.5, 2, -2, 0, 0, 0]))
    found = jax.jit(lambda o: advantages(method, o, reward_coef=0.1))(o)
    plain = tree_advantage(o, parent_J=FLAT, local=1.0)
    np.testing.assert_allclose(found - plain, 0.1 * jnp.array([0.5, 1, -1, 0, 0, 0])[:, None].repeat(T, 1), atol=1e-6)


def test_siblings_take_a_branch_point_for_a_prompt_by_hand():
    """Two trees of a root and two branches; the second root has none, so its branches are not kept."""
    o = outcomes([1, 1, 0, 0, 0, 0], [0, 2, 3, 0, 0, 0], [6, 5, 6, 4, 0, 0], group=6)
    o = o.replace(keep_R=jnp.array([1.0, 1, 1, 1, 0, 0]))
    # Roots 1 and 0: +-1 / sqrt 2. The tree 1, 1, 0: mean 2/3, standard deviation 1 / sqrt 3.
    root, right, wrong = 2**-0.5, (1 / 3) * 3**0.5, (-2 / 3) * 3**0.5
    expected = np.zeros((6, T))
    expected[0], expected[3] = root, -root
    expected[1, 2:], expected[2, 3:] = right, wrong
    found = sibling_advantage(o, tree_size=3, local=1.0)
    np.testing.assert_allclose(np.where(o.mask_RT, found, 0), np.where(o.mask_RT, expected, 0), atol=1e-5)
    half = sibling_advantage(o, tree_size=3, local=0.5)
    np.testing.assert_allclose(half[1:3], 0.5 * found[1:3], atol=1e-6)
    np.testing.assert_allclose(half[::3], found[::3], atol=1e-6)


def test_siblings_without_branches_are_the_method_itself():
    o = outcomes([1, 0, 0, 1, 1, 1], [0] * 6, [6] * 6, group=3)
    method = make_objective("grpo", max_tokens=T)
    siblings = with_tree_credit(method, parent_J=(-1,), local=1.0, siblings=True)
    np.testing.assert_allclose(advantages(siblings, o), advantages(method, o)[:, None].repeat(T, 1), atol=1e-6)
