"""DPPO (arXiv 2602.04879): a trust region by divergence, not by ratio.

    loss = -sg(min(pi / mu, cap)) * M_t * A * log pi,   mu the policy that sampled
    M_t = 0 where A > 0, pi > mu and D_t > delta_high, or A <= 0, pi < mu and D_t > delta_low; else 1

D_t compares the sampled token with all others together:
    tv   |pi - mu|
    kl   mu log(mu / pi) + (1 - mu) log((1 - mu) / (1 - pi))

A ratio says little of a rare token (from 1e-4 to 2e-4 it is 2, and nothing has moved) and hides much of a common one.
Bounds published: .15 for tv, .05 for kl. `anchor=old` measures against pi_old (the released "recompute" form), and the
importance weight then corrects for mu; with `anchor=rollout` the ratio does that itself.
Advantages R - mean, no standard deviation; 1 / (rows * T) * sum over tokens.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from iiblpo_jax.objectives.advantage import centred
from iiblpo_jax.objectives.clipping import MAX_LOG_RATIO
from iiblpo_jax.objectives.grpo import grpo
from iiblpo_jax.objectives.interface import Batch, Objective, TokenLoss

DELTA = {"tv": 0.15, "kl": 0.05}
REST = 1e-8  # keeps the probability of all other tokens away from 0


def dppo(
    *,
    max_tokens: int,
    aggregate="seq-mean-token-sum-norm",
    divergence="tv",
    delta_low=None,
    delta_high=None,
    cap=20.0,
    anchor="rollout",
) -> Objective:
    loss = partial(
        dppo_loss,
        divergence=divergence,
        delta_low=DELTA[divergence] if delta_low is None else delta_low,
        delta_high=DELTA[divergence] if delta_high is None else delta_high,
        cap=cap,
        anchor=anchor,
    )
    base = grpo(max_tokens=max_tokens, aggregate=aggregate)
    return dataclasses.replace(base, name="dppo", advantage=centred, policy_loss=loss)


def dppo_loss(
    batch: Batch, a_RT, *, divergence: str, delta_low: float, delta_high: float, cap: float, anchor: str
) -> TokenLoss:
    """The masked policy gradient; `ratio_RT` is pi / mu (or pi / pi_old), clipped are the masked tokens."""
    anchor_RT = batch.rows.raw_logp_RT if anchor == "rollout" else batch.old_logp_RT
    logp_RT = jax.lax.stop_gradient(batch.logp_RT)
    ratio_RT = jnp.exp(jnp.clip(logp_RT - anchor_RT, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    distance_RT = DIVERGENCES[divergence](logp_RT, anchor_RT)
    high_RT = (a_RT > 0) & (ratio_RT > 1) & (distance_RT > delta_high)
    low_RT = (a_RT <= 0) & (ratio_RT < 1) & (distance_RT > delta_low)
    weight_RT = jnp.where(high_RT | low_RT, 0.0, jnp.minimum(ratio_RT, cap))
    if anchor == "old":
        weight_RT *= batch.importance_RT
    return TokenLoss(
        loss_RT=-weight_RT * a_RT * batch.logp_RT,
        ratio_RT=ratio_RT,
        clip_low_RT=low_RT.astype(jnp.float32),
        clip_high_RT=high_RT.astype(jnp.float32),
    )


def total_variation(logp_RT, anchor_RT) -> jax.Array:
    """|pi - mu| of the sampled token: the total variation of (token, rest)."""
    return jnp.abs(jnp.exp(logp_RT) - jnp.exp(anchor_RT))


def kl_divergence(logp_RT, anchor_RT) -> jax.Array:
    """KL(mu || pi) of (token, rest)."""
    rest_mu_RT, rest_pi_RT = (-jnp.expm1(x) for x in (anchor_RT, logp_RT))
    others_RT = rest_mu_RT * jnp.log((rest_mu_RT + REST) / (rest_pi_RT + REST))
    return jnp.exp(anchor_RT) * (anchor_RT - logp_RT) + others_RT


DIVERGENCES = {"tv": total_variation, "kl": kl_divergence}
