"""GSPO (Zheng et al., arXiv 2507.18071): the ratio of whole sequences, length-normalised.

    s_i = exp(mean_t (log pi - log pi_old))
    loss = mean over responses of mean over tokens of max(-A s, -A clip(s, 1 - 3e-4, 1 + 4e-4))

Token t uses s_it = sg(s_i) * pi_t / sg(pi_t), which has the value of s_i and the gradient of log pi_t, so that
advantages may differ between tokens (GSPO-token, eq. 13).
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from iiblpo_jax.common import masked
from iiblpo_jax.objectives.clipping import clipped_surrogate
from iiblpo_jax.objectives.grpo import grpo
from iiblpo_jax.objectives.interface import Batch, Objective, TokenLoss

MAX_LOG_RATIO = 10.0


def gspo(*, max_tokens: int, clip_low=3e-4, clip_high=4e-4, aggregate="seq-mean-token-mean") -> Objective:
    base = grpo(max_tokens=max_tokens, aggregate=aggregate)
    loss = partial(gspo_loss, clip_low=clip_low, clip_high=clip_high)
    return dataclasses.replace(base, name="gspo", policy_loss=loss)


def gspo_loss(batch: Batch, a_RT, *, clip_low: float, clip_high: float) -> TokenLoss:
    """PPO-clip on the sequence ratio."""
    log_s_R1 = masked.mean(batch.logp_RT - batch.old_logp_RT, batch.rows.mask_RT, axis=1, keepdims=True)
    sg = jax.lax.stop_gradient
    log_s_RT = sg(log_s_R1) + batch.logp_RT - sg(batch.logp_RT)
    s_RT = jnp.exp(jnp.minimum(log_s_RT, MAX_LOG_RATIO))
    return clipped_surrogate(batch, a_RT, s_RT, clip_low=clip_low, clip_high=clip_high)
