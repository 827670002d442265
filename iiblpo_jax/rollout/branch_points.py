"""At which tokens of a trajectory branches begin: the branching policies.

A policy looks at what is recorded of a finished trajectory and says at which of its tokens a branch may begin. The
points are drawn uniformly from these candidates, and the token at a point is sampled anew. n is how many different
points there are, 1 with branch.points = shared:

    top            the max(2, fraction * own) highest entropies (arXiv 2601.05870)
    argmax         the n highest entropies: no draw (the code released with it; FR3E, arXiv 2507.07017)
    random         every eligible token: the control
    threshold      every eligible token of at least `min_entropy` nats: what is sure is no hesitation (ours)
    proportional   every eligible token, drawn not uniformly but in proportion to its entropy (ours)
    logp           the n sampled tokens of least log-probability (TreeRL, arXiv 2506.11902)
    segments       the first n multiples of `segment` (TreePO, arXiv 2508.17445)

Whatever the policy, candidates are eligible, and a parent's points come latest first: the two rules of branching.py. A
further policy is a function here, a line in POLICIES, and a choice of branch.at in config/defaults.py.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from iiblpo_jax.rollout.branching import Branching
from iiblpo_jax.rollout.kth_largest import bits, least_with_room

LEAST_WEIGHT = 1e-6  # nats: sure tokens are drawn where there are no others


class Record(struct.PyTreeNode):
    """What is known of B finished trajectories.

    Attributes:
      entropy_BT: entropy of the distribution that emitted token t, nats.
      logp_BT: log-probability of token t before truncation, nats.
      length_B: response tokens, stop token included.
      stopped_B: the last token is a stop token.
      begin_B: response index of the first own token: t* of a branch, 0 of a root.
      given_BT: bool, tokens of observations, which nobody drew; None where there are none.
    """

    entropy_BT: jax.Array
    logp_BT: jax.Array
    length_B: jax.Array
    stopped_B: jax.Array
    begin_B: jax.Array
    given_BT: jax.Array | None = None

    @property
    def t(self) -> int:
        """T."""
        return self.entropy_BT.shape[1]

    @property
    def own_B(self) -> jax.Array:
        """How many tokens were drawn for it."""
        if self.given_BT is None:
            return self.length_B - self.begin_B
        t_T = jnp.arange(self.t)
        own_BT = (t_T >= self.begin_B[:, None]) & (t_T < self.length_B[:, None]) & ~self.given_BT
        return own_BT.sum(-1)


def eligible_mask(record: Record, spec: Branching) -> jax.Array:
    """Tokens [B,T] that may be candidates at all: own tokens but the first and the share `after` they begin with, and
    neither the stop token nor one of the last min(min_suffix, length/4)."""
    t_T = jnp.arange(record.t)
    early_B = jnp.floor(spec.after * (record.length_B - record.begin_B) + 1e-6).astype(jnp.int32)
    first_B = record.begin_B + jnp.maximum(early_B, 1)
    tail_B = jnp.maximum(jnp.minimum(spec.min_suffix, record.length_B // 4), record.stopped_B)
    eligible_BT = (t_T >= first_B[:, None]) & (t_T < (record.length_B - tail_B)[:, None])
    return eligible_BT if record.given_BT is None else eligible_BT & ~record.given_BT


def candidate_mask(record: Record, spec: Branching) -> jax.Array:
    """Candidate branch points, bool [B,T], by the policy `spec.at`."""
    return POLICIES[spec.at](record, eligible_mask(record, spec), spec)


# -- policies: (record, eligible tokens, spec) -> candidates -----------------------------------------------------------


def top(record: Record, eligible_BT: jax.Array, spec: Branching) -> jax.Array:
    """The max(2, fraction * own) highest entropies."""
    return _largest(
        record.entropy_BT, eligible_BT, jnp.maximum(2, jnp.floor(spec.fraction * record.own_B + 1e-6).astype(jnp.int32))
    )


def argmax(record: Record, eligible_BT: jax.Array, spec: Branching) -> jax.Array:
    """As many of the highest entropies as there are points."""
    return _largest(record.entropy_BT, eligible_BT, jnp.full_like(record.length_B, spec.different_points))


def random(record: Record, eligible_BT: jax.Array, spec: Branching) -> jax.Array:
    """All that are eligible."""
    del record, spec
    return eligible_BT


def threshold(record: Record, eligible_BT: jax.Array, spec: Branching) -> jax.Array:
    """All that are eligible and hesitate for min_entropy nats; a root that has none gets no branches."""
    return eligible_BT & (record.entropy_BT >= spec.min_entropy)


def logp(record: Record, eligible_BT: jax.Array, spec: Branching) -> jax.Array:
    """As many of the sampled tokens as there are points, the least likely ones."""
    return _largest(record.logp_BT, eligible_BT, jnp.full_like(record.length_B, spec.different_points))


def segments(record: Record, eligible_BT: jax.Array, spec: Branching) -> jax.Array:
    """The first multiples of spec.segment, counted from the beginning of the response."""
    ends_BT = eligible_BT & (jnp.arange(record.t) % spec.segment == 0)
    return ends_BT & (jnp.cumsum(ends_BT, axis=-1) <= spec.different_points)


POLICIES: dict[str, Callable[[Record, jax.Array, Branching], jax.Array]] = {
    "top": top,
    "argmax": argmax,
    "random": random,
    "threshold": threshold,
    "proportional": random,  # the candidates; `weights` says how they are drawn
    "logp": logp,
    "segments": segments,
}


def _largest(x_BT: jax.Array, eligible_BT: jax.Array, count_B: jax.Array) -> jax.Array:
    """The count_B entries of largest absolute value among those that are eligible; equal ones in their order.

    Entropies and log-probs have one sign, but for what rounding leaves on the other side of 0.
    """
    bits_BT = jnp.where(eligible_BT, bits(jnp.abs(x_BT)), -1)
    least_B1 = least_with_room(bits_BT, lambda higher_BT: higher_BT.sum(-1) < count_B)[:, None]
    above_BT, equal_BT = bits_BT > least_B1, bits_BT == least_B1
    places_B1 = (count_B - above_BT.sum(-1))[:, None]
    return above_BT | (equal_BT & (jnp.cumsum(equal_BT, axis=-1) <= places_B1))


# -- what branches do with candidates ----------------------------------------------------------------------------------


def branches_due(record: Record, right_B: jax.Array, spec: Branching) -> jax.Array:
    """Branches [B] that a finished root gets: all of its tree, or none.

    None where it hesitates at no candidate for `min_entropy` nats, or where it is right and `solved` leaves such roots
    out.

    Args:
      record: of the roots.
      right_B: their answers are the gold ones; read only where `solved` is off.
      spec: static.
    """
    hesitates_B = jnp.where(candidate_mask(record, spec), record.entropy_BT, 0.0).max(-1) >= spec.min_entropy
    return jnp.where(hesitates_B & (spec.solved | ~right_B), spec.branches, 0)


def weights(record: Record, spec: Branching) -> jax.Array | None:
    """What candidates are drawn in proportion to [B,T]; None = all alike."""
    return jnp.maximum(record.entropy_BT, LEAST_WEIGHT) if spec.at == "proportional" else None


def choose_points(
    candidates_BT: jax.Array, keys_B: jax.Array, spec: Branching, weight_BT: jax.Array | None = None
) -> jax.Array:
    """Draws the points of the K branches of each trajectory from its candidates: int32 [B,K], descending.

    Uniformly, or with `weight_BT` one after the other in proportion to the weights of those that are left: the largest
    log(u) / w are drawn (Efraimidis and Spirakis 2006).

    `shared` repeats one point; `distinct` draws without replacement, starts over when candidates run out, and gives
    each point `per_point` branches. Descending order lets branches reuse the cache in place: a later branch never needs
    what an earlier one overwrote.
    """
    u_BT = jax.vmap(lambda key: jax.random.uniform(key, candidates_BT.shape[1:]))(keys_B)
    if weight_BT is not None:
        u_BT = jnp.log(jnp.maximum(u_BT, jnp.finfo(u_BT.dtype).tiny)) / weight_BT
    u_BT = jnp.where(candidates_BT, u_BT, -jnp.inf)
    n = spec.different_points
    left_B1 = jnp.maximum(candidates_BT.sum(-1, keepdims=True), 1)
    order_BN = jax.lax.top_k(u_BT, min(n, u_BT.shape[1]))[1]
    points_BN = jnp.take_along_axis(order_BN, jnp.arange(n)[None] % left_B1, axis=1)
    return jnp.repeat(-jnp.sort(-points_BN, axis=-1), spec.k // n, axis=1)


def branch_points(
    record: Record, nth_B: jax.Array, keys_B: jax.Array, spec: Branching
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """t* of branch nth_B[b] on parent b; whether that parent has no candidate; how many elder siblings begin at t* too.

    Without one the branch is a plain resample. On a root: from t* = 1, or from the start if that would leave no token
    to keep. On a branch: from where that began.

    Args:
      record: of the parents.
      nth_B: which of its parent's branches it is, from 0.
      keys_B: of the parents. Points depend on a parent's record and key alone, so that each of its branches finds the
        same ones.
      spec: static.
    """
    candidates_BT = candidate_mask(record, spec)
    points_BK = choose_points(candidates_BT, keys_B, spec, weights(record, spec))
    fallback_B = ~candidates_BT.any(-1)
    restart_B = (record.length_B - record.stopped_B > 0) & (record.t > 1)
    if record.given_BT is not None and record.t > 1:  # behind a first turn of one token there is an observation
        restart_B &= ~record.given_BT[:, 1]
    points_BK = jnp.where(fallback_B[:, None], jnp.maximum(record.begin_B, restart_B)[:, None], points_BK)
    at_B1 = jnp.take_along_axis(points_BK, nth_B[:, None], axis=1)
    elder_B = ((points_BK == at_B1) & (jnp.arange(spec.k) < nth_B[:, None])).sum(-1)
    return at_B1[:, 0].astype(jnp.int32), fallback_B, elder_B
