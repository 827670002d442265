"""Where a trajectory branches: at one of its most hesitant tokens (arXiv 2601.05870; README "Method").

A tree grows depth first in one slot of the cache, and nothing is copied. A branch that starts at t* writes from
position t* - 1 on (the token before t* is fed again, with its z) over what its parent left there. All that is needed
is still there when it is needed, because of two rules:

    own tokens     a branch's point lies among its parent's own tokens: behind the point at which the parent began
    latest first   the points of siblings do not rise

Take branches c_1, c_2, ... of one parent, at points p_1 >= p_2 >= ... By the first rule, applied all the way down, the
whole subtree of c_i writes at positions from p_i - 1 on. By the second, c_{i+1} reads below p_{i+1} - 1 <= p_i - 1 what
the parent left, and feeds the token at p_{i+1} - 1 itself. So it finds its prefix whole. When all of the parent's
subtree is done, everything written lies behind the point at which the parent began, and so the same holds one level up.
A branch without a candidate starts where its parent did, at the very edge of both rules.
"""

import dataclasses

import jax
import jax.numpy as jnp

from iiblpo_jax.common import trees
from iiblpo_jax.common.trees import TreeShape
from iiblpo_jax.rollout.kth_largest import bits, least_with_room


@dataclasses.dataclass(frozen=True, kw_only=True)
class Branching:
    """How trees grow.

    Attributes:
      k: K branches of a root, and of every branch that is not on the last level; 0 = none.
      fraction: share of a trajectory's own positions that are candidates, highest entropy first (at least two).
      min_suffix: the last min(min_suffix, length/4) tokens are no candidates.
      points: `shared` (one t* for the K branches of a trajectory) or `distinct`.
      parent: `root`, or `previous` (branches have branches).
      depth: levels of branches with `previous`; not used with `root`, which has one.
      min_entropy: nats; a root whose most hesitant candidate is surer than this has no branches.
      solved: a root that has given the gold answer has branches too.
    """

    k: int = 0
    fraction: float = 0.05
    min_suffix: int = 8
    points: str = "shared"
    parent: str = "root"
    depth: int = 2
    min_entropy: float = 0.0
    solved: bool = True

    @property
    def asks_answer(self) -> bool:
        """Whether a root's answer decides about its branches."""
        return self.k > 0 and not self.solved

    @property
    def may_skip(self) -> bool:
        """Whether a root can be left without branches."""
        return self.k > 0 and (self.min_entropy > 0 or not self.solved)

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


def candidate_mask(
    entropy_BT: jax.Array,
    length_B: jax.Array,
    stopped_B: jax.Array,
    spec: Branching,
    begin_B: jax.Array | None = None,
) -> jax.Array:
    """Candidate branch positions, bool [B,T]: the max(2, fraction * own) highest entropies among eligible tokens.

    Args:
      entropy_BT: entropy of the distribution that emitted token t, nats.
      length_B: response tokens, stop token included.
      stopped_B: the last token is a stop token.
      begin_B: response index of the first own token, t* of a branch; None = 0, of roots.

    Inherited tokens, the first own token, the stop token and the last min(min_suffix, length/4) tokens are not
    eligible.
    """
    begin_B = jnp.zeros_like(length_B) if begin_B is None else begin_B
    t_T = jnp.arange(entropy_BT.shape[1])
    tail_B = jnp.maximum(jnp.minimum(spec.min_suffix, length_B // 4), stopped_B)
    eligible_BT = (t_T > begin_B[:, None]) & (t_T < (length_B - tail_B)[:, None])
    count_B = jnp.maximum(2, jnp.floor(spec.fraction * (length_B - begin_B) + 1e-6).astype(jnp.int32))
    bits_BT = jnp.where(eligible_BT, bits(jnp.abs(entropy_BT)), -1)  # rounding may leave an entropy a hair below 0
    least_B1 = least_with_room(bits_BT, lambda higher_BT: higher_BT.sum(-1) < count_B)[:, None]
    above_BT, equal_BT = bits_BT > least_B1, bits_BT == least_B1
    places_B1 = (count_B - above_BT.sum(-1))[:, None]  # for equal entropies, in the order of the response
    return above_BT | (equal_BT & (jnp.cumsum(equal_BT, axis=-1) <= places_B1))


def branches_due(
    entropy_BT: jax.Array, length_B: jax.Array, stopped_B: jax.Array, right_B: jax.Array, spec: Branching
) -> jax.Array:
    """Branches [B] that a finished root gets: all of its tree, or none.

    None where it hesitates nowhere for `min_entropy` nats, or where it is right and `solved` leaves such roots out.

    Args:
      entropy_BT, length_B, stopped_B: of the roots, as for `candidate_mask`.
      right_B: their answers are the gold ones; read only where `solved` is off.
    """
    candidates_BT = candidate_mask(entropy_BT, length_B, stopped_B, spec)
    hesitates_B = jnp.where(candidates_BT, entropy_BT, 0.0).max(-1) >= spec.min_entropy
    return jnp.where(hesitates_B & (spec.solved | ~right_B), spec.branches, 0)


def choose_points(candidates_BT: jax.Array, keys_B: jax.Array, spec: Branching) -> jax.Array:
    """Draws the K branch points of each trajectory, uniformly from its candidates: int32 [B,K], descending.

    `shared` repeats one point; `distinct` draws without replacement and starts over when candidates run out.
    Descending order lets branches reuse the cache in place: a later branch never needs what an earlier one overwrote.
    """
    u_BT = jax.vmap(lambda key: jax.random.uniform(key, candidates_BT.shape[1:]))(keys_B)
    u_BT = jnp.where(candidates_BT, u_BT, -1.0)
    if spec.points == "shared":
        return jnp.repeat(u_BT.argmax(-1)[:, None], spec.k, axis=1)
    n_B1 = jnp.maximum(candidates_BT.sum(-1, keepdims=True), 1)
    order_BK = jax.lax.top_k(u_BT, min(spec.k, u_BT.shape[1]))[1]
    points_BK = jnp.take_along_axis(order_BK, jnp.arange(spec.k)[None] % n_B1, axis=1)
    return -jnp.sort(-points_BK, axis=-1)


def branch_points(
    entropy_BT: jax.Array,
    length_B: jax.Array,
    stopped_B: jax.Array,
    begin_B: jax.Array,
    nth_B: jax.Array,
    keys_B: jax.Array,
    spec: Branching,
) -> tuple[jax.Array, jax.Array]:
    """t* of branch nth_B[b] on parent b, and whether that parent has no candidate.

    Without one the branch is a plain resample. On a root: from t* = 1, or from the start if that would leave no token
    to keep. On a branch: from where that began.

    Args:
      entropy_BT, length_B, stopped_B, begin_B: of the parents, as for `candidate_mask`.
      nth_B: which of its parent's branches it is, from 0.
      keys_B: of the parents. Points depend on a parent's record and key alone, so that each of its branches finds the
        same ones.
      spec: static.
    """
    candidates_BT = candidate_mask(entropy_BT, length_B, stopped_B, spec, begin_B)
    points_BK = choose_points(candidates_BT, keys_B, spec)
    fallback_B = ~candidates_BT.any(-1)
    restart_B = (length_B - stopped_B > 0) & (entropy_BT.shape[1] > 1)
    at_B = jnp.take_along_axis(points_BK, nth_B[:, None], axis=1)[:, 0]
    return jnp.where(fallback_B, jnp.maximum(begin_B, restart_B), at_B).astype(jnp.int32), fallback_B
