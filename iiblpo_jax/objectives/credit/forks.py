"""Where the trajectories of a tree part, and what the segments between these points are worth.

A segment is a run of tokens that the same trajectories pass through. Its value is the mean reward of those.

    root      a b c|d e f     right       1 on d e f, 2/3 on a b c
    branch    a b c|x y       right       1 on x y
    branch    a b c|x z       wrong       0 on x z

Trajectories of a tree are contiguous, N trees of J; parent_J says who grows on whom (common/trees.py).
"""

import jax
import jax.numpy as jnp
import numpy as np

NEVER = np.iinfo(np.int32).max  # where a trajectory parts from itself


def forks(branch_at_NJ: jax.Array, parent_J: tuple[int, ...]) -> jax.Array:
    """[N,J,J] response index at which two trajectories of a tree part; NEVER on the diagonal.

    They share what their last common ancestor had said before the first of the two branches on it that lead to them
    began. What grows on a branch begins no earlier (rollout/branching.py), so nothing further down the paths matters.

        a          b leaves the root at 5, c leaves b at 8, d leaves the root at 3:
        |- b - c   c and b part at 8, c and a at 5, c and d at min(5, 3)
        `- d
    """
    toward_JJ = _branches_toward(parent_J)
    at_NJ = jnp.pad(branch_at_NJ.astype(jnp.int32), [(0, 0), (0, 1)], constant_values=NEVER)
    return jnp.minimum(at_NJ[:, toward_JJ], at_NJ[:, toward_JJ.T])


def forks_of_kept(branch_at_NJ: jax.Array, keep_NJ: jax.Array, parent_J: tuple[int, ...]) -> jax.Array:
    """`forks` as if the others had not been grown: from them everybody parts at 0. keep_NJ is bool."""
    others_JJ = ~np.eye(len(parent_J), dtype=bool)
    return jnp.where(others_JJ & ~keep_NJ[:, None, :], 0, forks(branch_at_NJ, parent_J))


def _branches_toward(parent_J: tuple[int, ...]) -> np.ndarray:
    """[a,b]: the branch on the last common ancestor of a and b that leads to a, or is a; J where a is that ancestor."""

    def path(j):
        return [] if j < 0 else [*path(parent_J[j]), j]

    paths = [path(j) for j in range(len(parent_J))]
    return np.array([[next((j for j in a if j not in b), len(paths)) for b in paths] for a in paths])


def segment_values(reward_NJ, counts_NJ, whole_NJ, fork_NJJ, t: int) -> tuple[jax.Array, jax.Array]:
    """Value of every token's segment and of the one before it, both [N*J,T].

    Args:
      reward_NJ, counts_NJ: of N trees, and how much each trajectory counts in a mean; 0 = it is not kept.
      whole_NJ: value before the first segment, the prompt's mean reward.
      fork_NJJ: from `forks`.
      t: T.
    """

    def along(t):
        behind_NJJ = jnp.where(fork_NJJ <= t, fork_NJJ, 0)
        start_NJ1 = behind_NJJ.max(-1, keepdims=True)  # where the segment of token t begins
        here_NJ = _mean(reward_NJ, counts_NJ, fork_NJJ > t)
        before_NJ = _mean(reward_NJ, counts_NJ, fork_NJJ >= start_NJ1)
        return here_NJ, jnp.where(start_NJ1[..., 0] > 0, before_NJ, whole_NJ)

    here_TNJ, before_TNJ = jax.lax.map(along, jnp.arange(t))
    return here_TNJ.reshape(t, -1).T, before_TNJ.reshape(t, -1).T


def segment_bounds(fork_NJJ: jax.Array, length_NJ: jax.Array, t: int) -> tuple[jax.Array, jax.Array]:
    """Where every token's segment begins, and where the next one does, both [N*J,T]; the last ends with the response.

    Behind the end of a response both are its length.
    """

    def along(t):
        start_NJ = jnp.where(fork_NJJ <= t, fork_NJJ, 0).max(-1)
        end_NJ = jnp.minimum(jnp.where(fork_NJJ > t, fork_NJJ, NEVER).min(-1), length_NJ)
        inside_NJ = t < length_NJ
        return jnp.where(inside_NJ, start_NJ, length_NJ), jnp.where(
            inside_NJ, jnp.minimum(end_NJ, length_NJ), length_NJ
        )

    start_TNJ, end_TNJ = jax.lax.map(along, jnp.arange(t))
    return start_TNJ.reshape(t, -1).T, end_TNJ.reshape(t, -1).T


def _mean(reward_NJ, counts_NJ, share_NJJ):
    """[N,J] mean reward of the trajectories that share; 0 where none counts."""
    weight_NJJ = share_NJJ * counts_NJ[:, None]
    total_NJ = weight_NJJ.sum(-1)
    return jnp.einsum("njk,nk->nj", weight_NJJ, reward_NJ) / jnp.where(total_NJ > 0, total_NJ, 1.0)
