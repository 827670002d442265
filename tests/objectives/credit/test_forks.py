"""Where trajectories part, against their paths token by token."""

import jax.numpy as jnp
import numpy as np

from iiblpo_jax.objectives.credit.forks import NEVER, forks, forks_of_kept

T = 6
CHAIN = (-1, 0, 1, 2)
TWO_ON_TWO = (-1, 0, 1, 1, 0, 4, 4)


def test_two_trajectories_part_where_their_paths_do(grow, parent_J):
    """A trajectory never parts from itself."""
    j = len(parent_J)
    for seed in range(5):
        trees = grow(seed, parent_J)
        fork_RJ = np.asarray(forks(jnp.asarray(trees.at_NJ), parent_J)).reshape(4 * j, j)
        for r, fork_J in enumerate(fork_RJ):
            for k in range(j):
                alike = [r - r % j + k in trees.through(r, t) for t in range(T)]
                assert min(fork_J[k], T) == (alike.index(False) if False in alike else T)
                assert (fork_J[k] == NEVER) == (r % j == k)


def test_forks_of_a_chain_by_hand():
    fork = forks(jnp.array([[0, 2, 4, 5]]), CHAIN)[0]
    expected = [[NEVER, 2, 2, 2], [2, NEVER, 4, 4], [2, 4, NEVER, 5], [2, 4, 5, NEVER]]
    np.testing.assert_array_equal(fork, expected)


def test_forks_of_two_on_two_by_hand():
    """0 - (1 at 3 - (2 at 5, 3 at 4), 4 at 2 - (5 at 4, 6 at 3)): 2 and 3 part at 4, 2 and 5 at 2."""
    fork = np.asarray(forks(jnp.array([[0, 3, 5, 4, 2, 4, 3]]), TWO_ON_TWO)[0])
    assert (fork[2, 3], fork[1, 2], fork[0, 2], fork[2, 5], fork[4, 5], fork[5, 6]) == (4, 5, 3, 2, 4, 3)


def test_who_is_not_kept_shares_nothing():
    keep = jnp.array([[True, False, True, True]])
    fork = forks_of_kept(jnp.array([[0, 2, 4, 5]]), keep, CHAIN)[0]
    np.testing.assert_array_equal(fork, [[NEVER, 0, 2, 2], [2, NEVER, 4, 4], [2, 0, NEVER, 5], [2, 0, 5, NEVER]])
