"""What trajectories stand for where branches are drawn without replacement (branch.replace=False).

A branch that begins with another token than its parent is no sample of the policy. Parent and branches divide the node
at t* between them: each but the last stands for the one token that it drew there, with the probability p of that, and
the last one for all that is left (sum and sample: Liu et al., arXiv 1810.04777).

    node at t*     parent draws a     1st branch b     2nd (last) branch c
    stands for     p(a)               p(b)             1 - p(a) - p(b)

    V(node) = p(a) R_parent + p(b) R_1 + (1 - p(a) - p(b)) R_2

has the mean of R over the policy whatever a, b and c are, if the node was chosen by what stands before it; and so has
its gradient. A node lower down divides what its trajectory stands for by then, so that the masses m of a tree are
products along its paths and sum to 1. Here t* is chosen by the rank of an entropy among those of the whole root, so the
root's end is no fair sample given the prefix and the estimate is not exact (docs/decisions.md).
"""

import jax
import jax.numpy as jnp
import numpy as np

from iiblpo_jax.common.trees import TreeShape


def masses(left_NJ: jax.Array, branch_at_NJ: jax.Array, grown_NJ: jax.Array, shape: TreeShape) -> jax.Array:
    """[N,J] masses of the trajectories of N trees; those of a tree sum to 1.

    Where nothing was left for the first branch of a node, all its trajectories are ordinary samples and share alike. A
    branch that had to begin where a parent that is a branch itself began has none: that node is divided already.

    Args:
      left_NJ, branch_at_NJ: as in Forest, by tree.
      grown_NJ: bool; a branch that was not grown has no mass, and takes none.
      shape: who grows on whom.
    """
    parent_J, nth_J = np.array(shape.parent_J), np.array(shape.nth_J)
    on_branch_J = (parent_J >= 0) & (parent_J[parent_J] >= 0)
    grown_NJ = grown_NJ & ~(on_branch_J & (branch_at_NJ == branch_at_NJ[:, parent_J]))
    siblings_JJ = (parent_J[:, None] == parent_J) & (parent_J >= 0)
    at_node_NJJ = siblings_JJ & (branch_at_NJ[:, :, None] == branch_at_NJ[:, None]) & grown_NJ[:, None]
    left_NJJ = jnp.where(at_node_NJJ, left_NJ[:, None], 0.0)
    first_left_NJ = left_NJJ.max(-1)  # what is left falls from branch to branch of a node
    next_left_NJ = jnp.where(nth_J[:, None] < nth_J, left_NJJ, 0.0).max(-1)
    alike_NJ = 1.0 / (1.0 + at_node_NJJ.sum(-1))
    share_NJ = jnp.where(first_left_NJ > 0, left_NJ - next_left_NJ, alike_NJ) * grown_NJ
    is_first_NJ = ~(at_node_NJJ & (nth_J[:, None] > nth_J)).any(-1) & grown_NJ & (parent_J >= 0)
    kept_NJ = jnp.where(is_first_NJ, jnp.where(first_left_NJ > 0, 1.0 - first_left_NJ, alike_NJ), 1.0)

    above_NJJ = siblings_JJ & (branch_at_NJ[:, None] < branch_at_NJ[:, :, None])
    share_NJ *= jnp.where(above_NJJ, kept_NJ[:, None], 1.0).prod(-1)
    through_NJ = jnp.where(parent_J == np.arange(len(parent_J))[:, None], kept_NJ[:, None], 1.0).prod(-1)
    begins = [jnp.ones_like(left_NJ[:, 0])]
    for j, parent in enumerate(shape.parent_J[1:], start=1):
        begins.append(begins[parent] * share_NJ[:, j])
    return jnp.stack(begins, axis=1) * through_NJ


def weights(mass_NJ: jax.Array, grown_NJ: jax.Array, *, power: float) -> jax.Array:
    """[N,J] weights of trajectories, of mean 1 over the J of a tree: J m^power / sum m^power.

    Args:
      mass_NJ: of `masses`.
      grown_NJ: bool.
      power: 1 = what they stand for; towards 0 all count alike, which is a policy that explores more than it is.
    """
    raised_NJ = jnp.where(grown_NJ, mass_NJ**power, 0.0)
    return mass_NJ.shape[1] * raised_NJ / jnp.maximum(raised_NJ.sum(-1, keepdims=True), 1e-30)
