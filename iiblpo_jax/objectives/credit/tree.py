"""`tree`: what trajectories have in common is credited with what became of all of them.

Token t of trajectory r lies in a segment (forks.py) of value V_r(t). Its parent's value is that of the segment before
it, or of the whole prompt where there is none before it (the nodes of TreeRL, arXiv 2506.11902):

    A_r(t) = [(V_r(t) - mean_g) + local * (V_r(t) - V_parent)] / (std_g + 1e-6)

local = 0 compares with the prompt's group alone, a larger one also with the siblings that share the prefix. Ours are
the standardisation, `local`, and that only kept trajectories count; treerl.py is the published form. Where branches are
drawn without replacement all means are weighed (Rows.weight_R): p V_parent + (1 - p) V_rest of a node.
"""

import jax
import jax.numpy as jnp

from iiblpo_jax.common import masked
from iiblpo_jax.objectives.advantage import STD_EPSILON, group_mean, group_std
from iiblpo_jax.objectives.credit.forks import forks, segment_values
from iiblpo_jax.objectives.rows import Rows


def tree_advantage(o: Rows, *, parent_J: tuple[int, ...], local: float) -> jax.Array:
    """A_r(t) [R,T] of the module's formula, std with ddof 1; 0 where the kept rewards of a prompt are all equal."""
    counts_R = o.keep_R.astype(o.reward_R.dtype) * (1.0 if o.weight_R is None else o.weight_R)
    mean_R1, std_R1 = group_mean(o)[:, None], group_std(o)[:, None]
    spread_R1 = masked.group_spread(o.reward_R, o.group_R, o.keep_R)[:, None] > 0

    def by_tree(x_R):
        return x_R.reshape(-1, len(parent_J))

    value_RT, parent_RT = segment_values(
        by_tree(o.reward_R), by_tree(counts_R), by_tree(mean_R1), forks(by_tree(o.branch_at_R), parent_J), o.t
    )
    gain_RT = value_RT - mean_R1 + local * (value_RT - parent_RT)
    return jnp.where(spread_R1, gain_RT / (std_R1 + STD_EPSILON), 0.0)
