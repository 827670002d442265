"""Where a trajectory branches: at one of its most hesitant tokens (arXiv 2601.05870; README "Method")."""

import dataclasses

import jax
import jax.numpy as jnp

from iiblpo_jax.rollout.kth_largest import bits, least_with_room


@dataclasses.dataclass(frozen=True, kw_only=True)
class Branching:
    """How branches grow on a root.

    Attributes:
      k: K branches a root; 0 = none.
      fraction: share of a trajectory's positions that are candidates, highest entropy first (at least two).
      min_suffix: the last min(min_suffix, length/4) tokens are no candidates.
      points: `shared` (one t* for all K) or `distinct`.
      parent: `root`, or `previous` (each branch grows on the one before).
      min_entropy: nats; a root whose most hesitant candidate is surer than this has no branches.
      solved: a root that has given the gold answer has branches too.
    """

    k: int = 0
    fraction: float = 0.05
    min_suffix: int = 8
    points: str = "shared"
    parent: str = "root"
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
        return 1 + self.k

    def place(self, trajectory: jax.Array) -> jax.Array:
        """j, the number of a trajectory within its tree; 0 = the root."""
        return trajectory % self.tree_size

    def grows_on(self, trajectory: jax.Array) -> jax.Array:
        """The trajectory that it grows on, -1 for roots."""
        j = self.place(trajectory)
        return jnp.where(j == 0, -1, trajectory - (j if self.parent == "root" else 1))

    @property
    def levels(self) -> int:
        """Most branches on one path from a root to a leaf."""
        return min(self.k, 1) if self.parent == "root" else self.k


def candidate_mask(entropy_BT: jax.Array, length_B: jax.Array, stopped_B: jax.Array, spec: Branching) -> jax.Array:
    """Candidate branch positions, bool [B,T]: the max(2, fraction * length) highest entropies among eligible tokens.

    Args:
      entropy_BT: entropy of the distribution that emitted token t, nats.
      length_B: response tokens, stop token included.
      stopped_B: the last token is a stop token.

    Token 0, the stop token and the last min(min_suffix, length/4) tokens are not eligible.
    """
    t_T = jnp.arange(entropy_BT.shape[1])
    tail_B = jnp.maximum(jnp.minimum(spec.min_suffix, length_B // 4), stopped_B)
    eligible_BT = (t_T >= 1) & (t_T < (length_B - tail_B)[:, None])
    count_B = jnp.maximum(2, jnp.floor(spec.fraction * length_B + 1e-6).astype(jnp.int32))
    bits_BT = jnp.where(eligible_BT, bits(jnp.abs(entropy_BT)), -1)  # rounding may leave an entropy a hair below 0
    least_B1 = least_with_room(bits_BT, lambda higher_BT: higher_BT.sum(-1) < count_B)[:, None]
    above_BT, equal_BT = bits_BT > least_B1, bits_BT == least_B1
    places_B1 = (count_B - above_BT.sum(-1))[:, None]  # for equal entropies, in the order of the response
    return above_BT | (equal_BT & (jnp.cumsum(equal_BT, axis=-1) <= places_B1))


def branches_due(
    entropy_BT: jax.Array, length_B: jax.Array, stopped_B: jax.Array, right_B: jax.Array, spec: Branching
) -> jax.Array:
    """Branches [B] that a finished root gets: all K, or none.

    None where it hesitates nowhere for `min_entropy` nats, or where it is right and `solved` leaves such roots out.

    Args:
      entropy_BT, length_B, stopped_B: of the roots, as for `candidate_mask`.
      right_B: their answers are the gold ones; read only where `solved` is off.
    """
    candidates_BT = candidate_mask(entropy_BT, length_B, stopped_B, spec)
    hesitates_B = jnp.where(candidates_BT, entropy_BT, 0.0).max(-1) >= spec.min_entropy
    return jnp.where(hesitates_B & (spec.solved | ~right_B), spec.k, 0)


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
    nth_B: jax.Array,
    keys_B: jax.Array,
    spec: Branching,
) -> tuple[jax.Array, jax.Array]:
    """t* of branch nth_B[b] on parent b, and whether that parent has no candidate.

    Without one the branch is a plain resample: from t* = 1, or from the start if that would leave no token to keep.
    A parent's points depend on its key alone, so that each of its branches finds the same ones.
    """
    candidates_BT = candidate_mask(entropy_BT, length_B, stopped_B, spec)
    points_BK = choose_points(candidates_BT, keys_B, spec)
    nth_B = jnp.clip(nth_B, 0, spec.k - 1) if spec.parent == "root" else jnp.zeros_like(nth_B)
    fallback_B = ~candidates_BT.any(-1)
    restart_B = (length_B - stopped_B > 0) & (entropy_BT.shape[1] > 1)
    at_B = jnp.take_along_axis(points_BK, nth_B[:, None], axis=1)[:, 0]
    return jnp.where(fallback_B, restart_B, at_B).astype(jnp.int32), fallback_B
