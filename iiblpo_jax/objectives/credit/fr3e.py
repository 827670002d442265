"""`fr3e`: blocks that have raised the value learn less, and those that have lowered it more (arXiv 2507.07017).

    A'_r(t) = A_r / exp(V(S_j) - V(S_{j-1}))     on block j, the tokens between the branch points S_{j-1} and S_j

A is the method's own advantage, such as GRPO's. V(S) is the mean reward of the trajectories that pass through S, that
of the prompt for S_0. Behind the last branch point of a path there is no next state, and A stays as it is; so without
branches this is the method itself.

FR3E estimates V(S_j) from M rollouts begun there. The paper gives neither M nor the number of states, and leaves open
which tokens alpha weighs. Ours: all that passes through S_j counts, the base trajectory and what branched later too;
only kept trajectories do; and alpha weighs a block in every trajectory that repeats it.
"""

import jax
import jax.numpy as jnp

from iiblpo_jax.common import masked
from iiblpo_jax.objectives.credit.forks import NEVER, forks_of_kept, segment_values
from iiblpo_jax.objectives.rows import Rows


def fr3e_advantage(o: Rows, plain: jax.Array, *, parent_J: tuple[int, ...]) -> jax.Array:
    """A'_r(t) [R,T] of the module's formula; `plain` is A, [R] or [R,T]."""

    def by_tree(x_R):
        return x_R.reshape(-1, len(parent_J))

    kept_NJ = by_tree(o.keep_R != 0)
    fork_NJJ = forks_of_kept(by_tree(o.branch_at_R), kept_NJ, parent_J)
    mean_R = masked.group_mean(o.reward_R, o.group_R, o.keep_R)
    value_RT, before_RT = segment_values(
        by_tree(o.reward_R), kept_NJ.astype(jnp.float32), by_tree(mean_R), fork_NJJ, o.t
    )
    last_R1 = jnp.where(fork_NJJ < NEVER, fork_NJJ, 0).max(-1).reshape(-1, 1)
    rise_RT = jnp.where(jnp.arange(o.t) < last_R1, value_RT - before_RT, 0.0)
    return plain.reshape(o.count, -1) * jnp.exp(-rise_RT)
