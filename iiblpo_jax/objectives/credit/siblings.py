"""`siblings`: a branch point is a prompt of its own.

Roots are credited among the roots of their prompt, as without branches; a branch's own tokens are credited within its
tree, what it inherits is its root's business:

    A_r(t) = (R_r - mean_roots) / (std_roots + 1e-6)                         of roots
    A_r(t) = local * (R_r - mean_tree) / (std_tree + 1e-6), t >= t*, else 0  of branches

Which roots have branches may then depend on their outcomes (branch.solved): roots are not compared with branches, and
branches only with what began at the same point. Only where all branches grow on the root. The rule is ours.
"""

import jax
import jax.numpy as jnp

from iiblpo_jax.objectives.advantage import standardised
from iiblpo_jax.objectives.rows import Rows


def sibling_advantage(o: Rows, *, tree_size: int, local: float) -> jax.Array:
    """A_r(t) [R,T] of `siblings`, std with ddof 1; 0 where the kept rewards of roots or of a tree are all equal."""
    o = o.replace(baseline_R=None)  # each is compared with those it is standardised among
    row_R = jnp.arange(o.reward_R.shape[0])
    root_R = row_R % tree_size == 0
    kept_R = o.keep_R != 0
    among_roots_R = standardised(o.replace(keep_R=(kept_R & root_R).astype(jnp.float32)))
    in_tree_R = standardised(o.replace(group_R=row_R // tree_size, keep_R=kept_R.astype(jnp.float32)))
    own_RT = jnp.arange(o.t) >= o.branch_at_R[:, None]
    return jnp.where(root_R[:, None], among_roots_R[:, None], local * jnp.where(own_RT, in_tree_R[:, None], 0.0))
