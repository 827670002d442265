"""How trees of trajectories grow, and why nothing is copied (arXiv 2601.05870; README "Method").

A tree grows depth first in one slot of the cache, and nothing is copied. A branch that starts at t* writes from
position t* - 1 on (the token before t* is fed again, with its z) over what its parent left there. All that is needed
is still there when it is needed, because of two rules:

    own tokens     a branch's point lies among its parent's own tokens: behind the point at which the parent began
    latest first   the points of siblings do not rise

Take branches c_1, c_2, ... of one parent, at points p_1 >= p_2 >= ... By the first rule, applied all the way down, the
whole subtree of c_i writes at positions from p_i - 1 on. By the second, c_{i+1} reads below p_{i+1} - 1 <= p_i - 1 what
the parent left, and feeds the token at p_{i+1} - 1 itself. So it finds its prefix whole. When all of the parent's
subtree is done, everything written lies behind the point at which the parent began, and so the same holds one level up.
A branch without a candidate starts where its parent did, at the very edge of both rules. Which tokens are candidates is
another matter: branch_points.py.
"""

import dataclasses

import jax
import jax.numpy as jnp

from iiblpo_jax.common import trees
from iiblpo_jax.common.trees import TreeShape


@dataclasses.dataclass(frozen=True, kw_only=True)
class Branching:
    """How trees grow.

    Attributes:
      k: K branches of a root, and of every branch that is not on the last level; 0 = none.
      at: which tokens are candidates, a key of branch_points.POLICIES.
      fraction: of `top`: share of a trajectory's own positions that are candidates (at least two).
      segment: of `segments`: tokens.
      after: share of a trajectory's own tokens, from their beginning, that are no candidates.
      min_suffix: the last min(min_suffix, length/4) tokens are no candidates.
      points: `shared` (one t* for the K branches of a trajectory) or `distinct`.
      per_point: branches that begin at each of the `distinct` points; divides k.
      parent: `root`, or `previous` (branches have branches).
      depth: levels of branches with `previous`; not used with `root`, which has one.
      min_entropy: nats; a root whose most hesitant candidate is surer than this has no branches.
      solved: a root that has given the gold answer has branches too.
      replace: a branch may begin with the token that its parent drew at t*. False: neither with that one nor with one
        that an elder sibling drew there (Draw.left_B, strata.py).
    """

    k: int = 0
    at: str = "top"
    fraction: float = 0.05
    segment: int = 512
    after: float = 0.0
    min_suffix: int = 8
    points: str = "shared"
    per_point: int = 1
    parent: str = "root"
    depth: int = 2
    min_entropy: float = 0.0
    solved: bool = True
    replace: bool = True

    @property
    def with_replacement(self) -> bool:
        """Whether no branch has to begin with another token than those before it."""
        return self.replace or self.k == 0

    @property
    def at_a_point(self) -> int:
        """Most branches of one parent that begin at the same point: all, where candidates run out."""
        return self.k

    @property
    def asks_answer(self) -> bool:
        """Whether a root's answer decides about its branches."""
        return self.k > 0 and not self.solved

    @property
    def may_skip(self) -> bool:
        """Whether a root can be left without branches."""
        return self.k > 0 and (self.min_entropy > 0 or not self.solved)

    @property
    def different_points(self) -> int:
        """Different t* of a trajectory; fewer where it has fewer candidates."""
        return 1 if self.points == "shared" else max(self.k // self.per_point, 1)

    @property
    def tree_size(self) -> int:
        """Trajectories of one tree."""
        return trees.tree_size(self.k, self.levels)

    @property
    def branches(self) -> int:
        """Branches of one tree."""
        return self.tree_size - 1

    @property
    def subtree(self) -> int:
        """Trajectories of a branch of the root and all that grows on it."""
        return self.branches // max(self.k, 1)

    @property
    def shape(self) -> TreeShape:
        """Who grows on whom: static tables over the trajectories of a tree."""
        return trees.tree_shape(self.k, self.levels)

    def place(self, trajectory: jax.Array) -> jax.Array:
        """j, the number of a trajectory within its tree; 0 = the root."""
        return trajectory % self.tree_size

    def grows_on(self, trajectory: jax.Array) -> jax.Array:
        """The trajectory that it grows on, -1 for roots."""
        up_J = jnp.array([j - parent for j, parent in enumerate(self.shape.parent_J)])
        j = self.place(trajectory)
        return jnp.where(j == 0, -1, trajectory - up_J[j])

    def nth(self, trajectory: jax.Array) -> jax.Array:
        """Its number among the branches of its parent, from 0; 0 for roots."""
        return jnp.array(self.shape.nth_J)[self.place(trajectory)]

    @property
    def levels(self) -> int:
        """Most branches on one path from a root to a leaf."""
        return trees.levels(self.k, self.depth, self.parent)
