"""Trees of trajectories, by hand and at random, and who shares which token in them."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

T = 6
SHAPES = {
    "3": (-1, 0, 0, 0),
    "1 on 1 on 1": (-1, 0, 1, 2),
    "2 on 2": (-1, 0, 1, 1, 0, 4, 4),
    "2 on 2 on 2": (-1, 0, 1, 2, 2, 1, 5, 5, 0, 8, 9, 9, 8, 12, 12),
}


@pytest.fixture(params=SHAPES)
def parent_J(request):
    """Who grows on whom, of several kinds of trees."""
    return SHAPES[request.param]


@pytest.fixture(scope="session")
def outcomes(make_rows):
    """Rows of T tokens with these rewards, branch points and lengths, in groups of one size."""

    def make(reward_R, branch_at_R, length_R, group, **fields):
        mask_RT = np.arange(T) < np.asarray(length_R)[:, None]
        group_R = np.arange(len(reward_R)) // group
        return make_rows(
            reward_R, group_R, t=T, length_R=length_R, branch_at_R=branch_at_R, mask_RT=mask_RT, own_mask_RT=mask_RT
        ).replace(**fields)

    return make


def shared(own_from, parent_J, a, b, t):
    """Whether trajectories a and b of one tree have token t in common, by following both to the root."""

    def owner(j):  # of token t on the path of trajectory j
        while j and t < own_from[j]:
            j = parent_J[j]
        return j

    return owner(a) == owner(b)


def branch_points(rng, parent_J, trees):
    """Random points, each among the parent's own tokens or, as of a resample, where the parent began."""
    at_NJ = np.zeros((trees, len(parent_J)), int)
    for j, parent in enumerate(parent_J[1:], start=1):
        at_NJ[:, j] = rng.integers(np.maximum(at_NJ[:, parent], 1), T)
    return at_NJ


@pytest.fixture(scope="session")
def grow(outcomes):
    """make(seed, parent_J): rows of two prompts with two trees each, a quarter of them not kept.

    It has `rows`, `group`, `at_NJ`, and through(r, t): the rows of r's tree that have token t in common with r.
    """

    def make(seed, parent_J):
        rng, j = np.random.default_rng(seed), len(parent_J)
        at_NJ = branch_points(rng, parent_J, trees=4)
        rewards, length = rng.integers(0, 2, 4 * j), rng.integers(at_NJ.ravel() + 1, T + 1)
        keep_R = jnp.asarray(rng.integers(0, 4, 4 * j) > 0, jnp.float32)

        def through(r, t):
            first = r - r % j
            return {x for x in range(first, first + j) if shared(at_NJ[r // j], parent_J, r - first, x - first, t)}

        rows = outcomes(rewards, at_NJ.ravel(), length, 2 * j, keep_R=keep_R)
        return types.SimpleNamespace(rows=rows, group=2 * j, at_NJ=at_NJ, through=through)

    return make
