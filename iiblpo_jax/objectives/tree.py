"""Credit along a tree: what trajectories have in common is credited with what became of all of them.

A tree is a root, its branches, and theirs. Token t of trajectory r lies in a segment: the tokens that the same
trajectories pass through. Its value V_r(t) is the mean reward of those trajectories. Its parent's value is that of the
segment before it, or of the whole prompt where there is none before it (the nodes of TreeRL, arXiv 2506.11902).

    root      a b c|d e f     right       V = 2/3 on a b c, 1 on d e f        parent: the prompt, then 2/3
    branch    a b c|x y       right       V = 2/3 on a b c, 1 on x y
    branch    a b c|x z       wrong       V = 2/3 on a b c, 0 on x z

    A_r(t) = [(V_r(t) - mean_g) + local * (V_r(t) - V_parent)] / (std_g + 1e-6)

local = 0 compares with the prompt's group alone, a larger one also with the siblings that share the prefix.

`siblings` instead takes a branch point for a prompt of its own. Roots are credited among the roots of their prompt, as
without branches; a branch's own tokens are credited within its tree, what it inherits is its root's business:

    A_r(t) = (R_r - mean_roots) / (std_roots + 1e-6)                         of roots
    A_r(t) = local * (R_r - mean_tree) / (std_tree + 1e-6), t >= t*, else 0  of branches

Which roots have branches may then depend on their outcomes (branch.solved): roots are not compared with branches, and
branches only with what began at the same point.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from iiblpo_jax.common import masked
from iiblpo_jax.objectives.advantage import STD_EPSILON, standardised
from iiblpo_jax.objectives.interface import Objective
from iiblpo_jax.objectives.rows import Rows


def with_tree_credit(
    objective: Objective, *, parent_J: tuple[int, ...], local: float, siblings: bool = False
) -> Objective:
    """The method with advantages [R,T] along trees in place of one number a trajectory.

    Args:
      objective: whose policy loss, aggregate and reward shaping stay.
      parent_J: who grows on whom in a tree (common/trees.py). Its J trajectories are contiguous, the root first.
      local: weight of the comparison with the parent segment, or with the tree.
      siblings: see the module; only where all branches grow on the root.
    """

    def advantage(rows: Rows) -> jax.Array:
        if siblings:
            return sibling_advantage(rows, tree_size=len(parent_J), local=local)
        return tree_advantage(rows, parent_J=parent_J, local=local)

    return dataclasses.replace(objective, advantage=advantage)


def tree_advantage(o: Rows, *, parent_J: tuple[int, ...], local: float) -> jax.Array:
    """A_r(t) [R,T] of the module's formula, std with ddof 1; 0 where the kept rewards of a prompt are all equal."""
    keep_R = o.keep_R.astype(o.reward_R.dtype)
    mean_R1 = masked.group_mean(o.reward_R, o.group_R, keep_R)[:, None]
    std_R1 = masked.group_std(o.reward_R, o.group_R, keep_R, ddof=1)[:, None]
    spread_R1 = masked.group_spread(o.reward_R, o.group_R, keep_R)[:, None] > 0

    def by_tree(x_R):
        return x_R.reshape(-1, len(parent_J))

    value_RT, parent_RT = segment_values(
        by_tree(o.reward_R),
        by_tree(keep_R),
        by_tree(mean_R1),
        forks(by_tree(o.branch_at_R), parent_J),
        o.mask_RT.shape[1],
    )
    gain_RT = value_RT - mean_R1 + local * (value_RT - parent_RT)
    return jnp.where(spread_R1, gain_RT / (std_R1 + STD_EPSILON), 0.0)


def sibling_advantage(o: Rows, *, tree_size: int, local: float) -> jax.Array:
    """A_r(t) [R,T] of `siblings`, std with ddof 1; 0 where the kept rewards of roots or of a tree are all equal."""
    o = o.replace(baseline_R=None)  # each is compared with those it is standardised among
    row_R = jnp.arange(o.reward_R.shape[0])
    root_R = row_R % tree_size == 0
    kept_R = o.keep_R != 0
    among_roots_R = standardised(o.replace(keep_R=(kept_R & root_R).astype(jnp.float32)))
    in_tree_R = standardised(o.replace(group_R=row_R // tree_size, keep_R=kept_R.astype(jnp.float32)))
    own_RT = jnp.arange(o.mask_RT.shape[1]) >= o.branch_at_R[:, None]
    return jnp.where(root_R[:, None], among_roots_R[:, None], local * jnp.where(own_RT, in_tree_R[:, None], 0.0))


def forks(branch_at_NJ: jax.Array, parent_J: tuple[int, ...]) -> jax.Array:
    """[N,J,J] response index at which two trajectories of a tree part; the largest integer on the diagonal.

    They share what their last common ancestor had said before the first of the two branches on it that lead to them
    began. What grows on a branch begins no earlier (rollout/branching.py), so nothing further down the paths matters.

        a          b leaves the root at 5, c leaves b at 8, d leaves the root at 3:
        |- b - c   c and b part at 8, c and a at 5, c and d at min(5, 3)
        `- d
    """
    never = jnp.iinfo(jnp.int32).max
    toward_JJ = _branches_toward(parent_J)
    at_NJ = jnp.pad(branch_at_NJ.astype(jnp.int32), [(0, 0), (0, 1)], constant_values=never)
    return jnp.minimum(at_NJ[:, toward_JJ], at_NJ[:, toward_JJ.T])


def _branches_toward(parent_J: tuple[int, ...]) -> np.ndarray:
    """[a,b]: the branch on the last common ancestor of a and b that leads to a, or is a; J where a is that ancestor."""

    def path(j):
        return [] if j < 0 else [*path(parent_J[j]), j]

    paths = [path(j) for j in range(len(parent_J))]
    return np.array([[next((j for j in a if j not in b), len(paths)) for b in paths] for a in paths])


def segment_values(reward_NJ, keep_NJ, whole_NJ, fork_NJJ, t: int) -> tuple[jax.Array, jax.Array]:
    """Value of every token's segment and of the one before it, both [N*J,T].

    Args:
      reward_NJ, keep_NJ: of N trees; trajectories that are not kept count in no mean.
      whole_NJ: value before the first segment, the prompt's mean reward.
      fork_NJJ: from `forks`.
      t: T.
    """

    def along(t):
        behind_NJJ = jnp.where(fork_NJJ <= t, fork_NJJ, 0)
        start_NJ1 = behind_NJJ.max(-1, keepdims=True)  # where the segment of token t begins
        here_NJ = _mean(reward_NJ, keep_NJ, fork_NJJ > t)
        before_NJ = _mean(reward_NJ, keep_NJ, fork_NJJ >= start_NJ1)
        return here_NJ, jnp.where(start_NJ1[..., 0] > 0, before_NJ, whole_NJ)

    here_TNJ, before_TNJ = jax.lax.map(along, jnp.arange(t))
    return here_TNJ.reshape(t, -1).T, before_TNJ.reshape(t, -1).T


def _mean(reward_NJ, keep_NJ, share_NJJ):
    """[N,J] mean reward of the kept trajectories that share."""
    weight_NJJ = share_NJJ * keep_NJ[:, None]
    return jnp.einsum("njk,nk->nj", weight_NJJ, reward_NJ) / jnp.maximum(weight_NJJ.sum(-1), 1.0)
