"""SAPO (Gao et al., arXiv 2511.20347, eq. 5-6): a soft gate in place of a clip.

    f(r) = 4 / tau * sigmoid(tau * (r - 1)),   tau = 1.0 where A > 0, 1.05 elsewhere
    loss = mean over responses of mean over tokens of -A f(r_t),   r_t = pi / pi_old

f'(1) = 1, so the first step is that of GRPO; further out the gradient fades by 4 p (1 - p), p the sigmoid, and fades
faster for A < 0. Nothing is clipped: the metrics of clipping stay 0.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from iiblpo_jax.objectives.clipping import ratio, unclipped
from iiblpo_jax.objectives.grpo import grpo
from iiblpo_jax.objectives.interface import Batch, Objective, TokenLoss


def sapo(*, max_tokens: int, aggregate="seq-mean-token-mean", tau_pos=1.0, tau_neg=1.05) -> Objective:
    base = grpo(max_tokens=max_tokens, aggregate=aggregate)
    return dataclasses.replace(base, name="sapo", policy_loss=partial(sapo_loss, tau_pos=tau_pos, tau_neg=tau_neg))


def sapo_loss(batch: Batch, a_RT, *, tau_pos: float, tau_neg: float) -> TokenLoss:
    """-A f(r), times the importance weight."""
    ratio_RT = ratio(batch)
    tau_RT = jnp.where(a_RT > 0, tau_pos, tau_neg)
    gate_RT = 4.0 / tau_RT * jax.nn.sigmoid(tau_RT * (ratio_RT - 1.0))
    return unclipped(-batch.importance_RT * a_RT * gate_RT, ratio_RT)
