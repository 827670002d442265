"""The clipped surrogate that PPO's descendants share."""

import jax
import jax.numpy as jnp

from iiblpo_jax.objectives.interface import Batch, TokenLoss

MAX_LOG_RATIO = 20.0  # exp stays finite; far outside any clip range
DUAL_CLIP = 3.0


def ratio(batch: Batch) -> jax.Array:
    """pi / pi_old of every token; exactly 1 where the log-probs are equal."""
    return jnp.exp(jnp.clip(batch.logp_RT - batch.old_logp_RT, -MAX_LOG_RATIO, MAX_LOG_RATIO))


def unclipped(loss_RT, ratio_RT) -> TokenLoss:
    """The loss of a method that clips nothing: the metrics of clipping stay 0."""
    none_RT = jnp.zeros_like(ratio_RT)
    return TokenLoss(loss_RT=loss_RT, ratio_RT=ratio_RT, clip_low_RT=none_RT, clip_high_RT=none_RT)


def clipped_surrogate(batch: Batch, a_RT, ratio_RT, *, clip_low: float, clip_high: float) -> TokenLoss:
    """importance * max(-A r, -A clip(r, 1 - low, 1 + high)) (Schulman et al. 2017, eq. 7)."""
    clipped_RT = jnp.clip(ratio_RT, 1.0 - clip_low, 1.0 + clip_high)
    return TokenLoss(
        loss_RT=batch.importance_RT * jnp.maximum(-a_RT * ratio_RT, -a_RT * clipped_RT),
        ratio_RT=ratio_RT,
        clip_low_RT=((a_RT < 0) & (ratio_RT < 1.0 - clip_low)).astype(jnp.float32),
        clip_high_RT=((a_RT > 0) & (ratio_RT > 1.0 + clip_high)).astype(jnp.float32),
    )


def ppo_loss(batch: Batch, a_RT, *, clip_low: float, clip_high: float) -> TokenLoss:
    """Token-level PPO-clip; for A < 0 the loss is capped at -3 A (dual clip, Ye et al. 2020, as in verl)."""
    token = clipped_surrogate(batch, a_RT, ratio(batch), clip_low=clip_low, clip_high=clip_high)
    cap_RT = jnp.where(a_RT < 0, -DUAL_CLIP * a_RT * batch.importance_RT, jnp.inf)
    return token.replace(loss_RT=jnp.minimum(token.loss_RT, cap_RT))
