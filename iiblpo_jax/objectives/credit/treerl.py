"""`treerl`: process rewards from a tree's leaves, as TreeRL has them (arXiv 2506.11902; its released code).

Every trajectory of a prompt is a leaf, kept or not. Its reward is compared with the mean of the G - 1 others; a segment
n (forks.py) is worth what the L_n leaves that pass through it come to, less where several of them are trained on:

    R'_i = R_i - mean_{j != i} R_j,     V_n = sum_{i through n} R'_i / (L_n sqrt(s_n)),     s_n = kept leaves through n
    A_n = (V_n - V_before) + V_n

V_before is the value of the segment before n, 0 before the first: over a whole prompt R' sums to 0. Where a segment is
worth exactly what the one before is, its tokens have the advantage of those before. Nothing is divided by a standard
deviation. sqrt(s_n) counts on branch.prefix_loss: a segment is trained once for every kept leaf through it.

The authors train on 16 of 30 leaves a prompt; here the filter chooses (`defaults.treerl`). Ours: a leaf is what was
grown, so that a response which reward.overlong = mask leaves out is one still.
"""

import jax
import jax.numpy as jnp

from iiblpo_jax.common import masked
from iiblpo_jax.objectives.credit.forks import forks
from iiblpo_jax.objectives.rows import Rows


def treerl_advantage(o: Rows, *, parent_J: tuple[int, ...]) -> jax.Array:
    """A_r(t) [R,T] of the module's formula; 0 where the rewards of a prompt are all equal."""

    def by_tree(x_R):
        return x_R.reshape(-1, len(parent_J))

    leaf_R = (o.length_R > 0).astype(jnp.float32)
    leaves_R = masked.group_count(o.group_R, leaf_R)
    # (G - 1) R', and means before roots: of rewards that are whole numbers equal values come out equal to the bit.
    excess_R = leaves_R * o.reward_R - masked.group_sum(o.reward_R, o.group_R, leaf_R)
    differ_R = masked.group_spread(o.reward_R, o.group_R, leaf_R) > 0
    of_leaves = [by_tree(x_R) for x_R in (jnp.where(differ_R, excess_R, 0.0) * leaf_R, leaf_R, o.keep_R != 0)]
    others_NJ = by_tree(jnp.maximum(leaves_R - 1.0, 1.0))
    fork_NJJ = forks(by_tree(o.branch_at_R), parent_J)

    def along(before, t):
        value_NJ, advantage_NJ = before
        through_NJJ = fork_NJJ > t
        excess, leaves, kept = (masked.sum(x_NJ[:, None], through_NJJ, axis=-1) for x_NJ in of_leaves)
        here_NJ = excess / (jnp.maximum(leaves, 1.0) * others_NJ) / jnp.sqrt(jnp.maximum(kept, 1.0))
        local_NJ = here_NJ - value_NJ  # 0 within a segment, too: its tokens go on with its advantage
        advantage_NJ = jnp.where(local_NJ == 0, advantage_NJ, local_NJ + here_NJ)
        return (here_NJ, advantage_NJ), advantage_NJ

    nothing_NJ = jnp.zeros_like(others_NJ)
    advantage_TNJ = jax.lax.scan(along, (nothing_NJ, nothing_NJ), jnp.arange(o.t))[1]
    return advantage_TNJ.reshape(o.t, -1).T
