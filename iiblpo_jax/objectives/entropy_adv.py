"""Entropy-shaped advantage (Cheng et al., arXiv 2506.14758): uncertain tokens get a bonus.

    psi(H_t) = min(alpha * sg(H_t), |A_t| / kappa),   A'_t = A_t + psi(H_t)

No gradient flows through H. kappa > 1 keeps the sign of A, and a zero advantage stays zero. On top of clip-higher and
token mean, as published; alpha = 0.4 is the paper's value for GRPO.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from iiblpo_jax.objectives.dapo import dapo
from iiblpo_jax.objectives.interface import Batch, Objective


def entropy_adv(
    *, max_tokens: int, clip_low=0.2, clip_high=0.28, aggregate="token-mean", alpha=0.4, kappa=2.0
) -> Objective:
    base = dapo(max_tokens=max_tokens, clip_low=clip_low, clip_high=clip_high, aggregate=aggregate)
    return dataclasses.replace(
        base, name="entropy_adv", advantage_transform=partial(shaped_advantage, alpha=alpha, kappa=kappa)
    )


def shaped_advantage(batch: Batch, *, alpha: float, kappa: float):
    """A + min(alpha * sg(H), |A| / kappa)."""
    bonus_RT = alpha * jax.lax.stop_gradient(batch.entropy_RT)
    advantage_RT = batch.rows.advantage_RT
    return advantage_RT + jnp.minimum(bonus_RT, jnp.abs(advantage_RT) / kappa)
