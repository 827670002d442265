"""What the loss of a token is multiplied by where pi_old did not draw it: pi_old / mu, within bounds.

mu is what the rollout noted of its draw: at its temperature, with z, over the whole vocabulary. pi_old is read over the
whole vocabulary too, so what top-k, top-p, min-p and min_tokens left out stands on neither side: with a z that does
nothing, every weight is 1.

    token_truncate      w_t, cut to [floor, cap]
    token_mask          w_t, 0 outside [floor, cap]
    sequence_truncate   the product of the response's w_t, cut, for all its tokens
    sequence_mask       the product, 0 outside

The names are TRL's (vllm_importance_sampling_mode). The first with cap 2 is verl's rollout_is=token with
rollout_is_threshold=2 (TIS), the second with both bounds IcePop (arXiv 2510.18855). Masked tokens stay in the
denominator of the aggregate: they count as tokens that teach nothing.
"""

import math

import jax
import jax.numpy as jnp

from iiblpo_jax.objectives.rows import Rows
from iiblpo_jax.update.settings import UpdateSettings


def weighed(rows: Rows, s: UpdateSettings) -> jax.Array:
    """float32 [R,T], 1 on counted tokens that another distribution than pi_old drew.

    After a rollout in other numbers, or of another policy, these are all; else those sampled with z and scored without.
    """
    if not s.exact_rollout:
        return rows.mask_RT
    return rows.mask_RT * rows.z_on_RT if s.condition == "marginal" else jnp.zeros_like(rows.mask_RT)


def importance(rows: Rows, old_logp_RT: jax.Array, s: UpdateSettings) -> jax.Array:
    """The weights [R,T], constants; 1 on tokens that are not weighed, and everywhere with importance_cap = 0."""
    if not s.importance_cap:
        return jnp.ones_like(rows.mask_RT)
    # Bounded before exp, which could overflow.
    weight_RT = jnp.exp(jnp.clip(_log_ratio(rows, old_logp_RT, s), *_bounds(s)))
    if s.importance.endswith("mask"):
        weight_RT = jnp.where(outside(rows, old_logp_RT, s) > 0, 0.0, weight_RT)
    return weight_RT


def outside(rows: Rows, old_logp_RT: jax.Array, s: UpdateSettings) -> jax.Array:
    """float32 [R,T], 1 where a ratio lies out of bounds: its weight was cut, or is 0."""
    if not s.importance_cap:
        return jnp.zeros_like(rows.mask_RT)
    log_RT, (low, high) = _log_ratio(rows, old_logp_RT, s), _bounds(s)
    return ((log_RT < low) | (log_RT > high)).astype(jnp.float32)


def _log_ratio(rows: Rows, old_logp_RT, s: UpdateSettings):
    """log(pi_old / mu) of each token or, summed over its counted tokens, of each response; 0 where nothing differs."""
    log_RT = jnp.where(weighed(rows, s) > 0, old_logp_RT - rows.raw_logp_RT, 0.0)
    if s.importance.startswith("token"):
        return log_RT
    return jnp.broadcast_to(log_RT.sum(1, keepdims=True), log_RT.shape)


def _bounds(s: UpdateSettings) -> tuple[float, float]:
    return math.log(s.importance_floor) if s.importance_floor else -math.inf, math.log(s.importance_cap)
