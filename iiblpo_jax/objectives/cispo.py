"""CISPO (MiniMax-M1, arXiv 2506.13585, eq. 4): the weight is clipped, never the gradient.

    loss = mean over tokens of -sg(clip(r_t, 1 - low, 1 + high)) * A * log pi,   r_t = pi / pi_old

A token outside the range still learns, with a bounded weight. low = 1 is no lower bound, as published; high = .2 is
what other stacks start from (the paper tunes it and gives no number).
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from iiblpo_jax.objectives.clipping import ratio
from iiblpo_jax.objectives.grpo import grpo
from iiblpo_jax.objectives.interface import Batch, Objective, TokenLoss


def cispo(*, max_tokens: int, clip_low=1.0, clip_high=0.2, aggregate="token-mean") -> Objective:
    base = grpo(max_tokens=max_tokens, aggregate=aggregate)
    loss = partial(cispo_loss, clip_low=clip_low, clip_high=clip_high)
    return dataclasses.replace(base, name="cispo", policy_loss=loss)


def cispo_loss(batch: Batch, a_RT, *, clip_low: float, clip_high: float) -> TokenLoss:
    """-sg(clip(r)) A log pi, times the importance weight; a token whose weight was cut counts as clipped."""
    ratio_RT = ratio(batch)
    weight_RT = jax.lax.stop_gradient(jnp.clip(ratio_RT, 1.0 - clip_low, 1.0 + clip_high))
    return TokenLoss(
        loss_RT=-batch.importance_RT * weight_RT * a_RT * batch.logp_RT,
        ratio_RT=ratio_RT,
        clip_low_RT=((a_RT < 0) & (ratio_RT < 1.0 - clip_low)).astype(jnp.float32),
        clip_high_RT=((a_RT > 0) & (ratio_RT > 1.0 + clip_high)).astype(jnp.float32),
    )
