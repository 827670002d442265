"""DPPO (arXiv 2602.04879): a trust region by divergence, not by ratio.

    loss = -sg(min(pi / mu, cap)) * M_t * A * log pi,   mu the policy that sampled
    M_t = 0 where A > 0, pi > mu and D_t > delta_high, or A <= 0, pi < mu and D_t > delta_low; else 1

D_t compares the sampled token with all others together:
    tv   |pi - mu|
    kl   mu log(mu / pi) + (1 - mu) log((1 - mu) / (1 - pi))

Over the K likeliest tokens of mu and the rest as one more (top_k > 0), p of mu and q of pi at the same tokens:
    tv   (sum |p - q| + |p_rest - q_rest|) / 2
    kl   sum p log(p / q) + p_rest log(p_rest / q_rest)

A ratio says little of a rare token (from 1e-4 to 2e-4 it is 2, and nothing has moved) and hides much of a common one.
Bounds published: .15 for tv, .05 for kl. `anchor=old` measures against pi_old (the released "recompute" form), and the
importance weight then corrects for mu; with `anchor=rollout` the ratio does that itself. The likeliest tokens are those
that the rollout noted, so top_k needs that anchor; each probability counts as 1e-12 at least, and the direction stays
that of the sampled token.
Advantages R - mean, no standard deviation; 1 / (rows * T) * sum over tokens.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.objectives.advantage import centred
from iiblpo_jax.objectives.clipping import MAX_LOG_RATIO
from iiblpo_jax.objectives.grpo import grpo
from iiblpo_jax.objectives.interface import Batch, Objective, TokenLoss
from iiblpo_jax.objectives.rows import TOP_LOGP

DELTA = {"tv": 0.15, "kl": 0.05}
REST = 1e-8  # keeps the probability of all other tokens away from 0
LEAST = 1e-12  # the least probability of a token, or of the rest, among the likeliest


def dppo(
    *,
    max_tokens: int,
    aggregate="seq-mean-token-sum-norm",
    divergence="tv",
    delta_low=None,
    delta_high=None,
    cap=20.0,
    anchor="rollout",
    top_k=0,
) -> Objective:
    if top_k and anchor != "rollout":
        raise InputError(f"objective.options.top_k = {top_k} compares with what the rollout noted; set anchor=rollout")
    loss = partial(
        dppo_loss,
        divergence=divergence,
        delta_low=DELTA[divergence] if delta_low is None else delta_low,
        delta_high=DELTA[divergence] if delta_high is None else delta_high,
        cap=cap,
        anchor=anchor,
        top_k=top_k,
    )
    base = grpo(max_tokens=max_tokens, aggregate=aggregate)
    return dataclasses.replace(base, name="dppo", advantage=centred, policy_loss=loss, record=top_k)


def dppo_loss(
    batch: Batch, a_RT, *, divergence: str, delta_low: float, delta_high: float, cap: float, anchor: str, top_k: int = 0
) -> TokenLoss:
    """The masked policy gradient; `ratio_RT` is pi / mu (or pi / pi_old), clipped are the masked tokens."""
    anchor_RT = batch.rows.raw_logp_RT if anchor == "rollout" else batch.old_logp_RT
    logp_RT = jax.lax.stop_gradient(batch.logp_RT)
    ratio_RT = jnp.exp(jnp.clip(logp_RT - anchor_RT, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    distance_RT = top_divergence(batch, divergence) if top_k else DIVERGENCES[divergence](logp_RT, anchor_RT)
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


def top_divergence(batch: Batch, divergence: str) -> jax.Array:
    """[R,T] between mu and pi over the tokens that the rollout noted, and the rest."""
    assert batch.top_logp_RTK is not None, "Objective.record makes the update read them"
    p_RTk, q_RTk = (_with_rest(x_RTK) for x_RTK in (batch.rows.extras[TOP_LOGP], batch.top_logp_RTK))
    if divergence == "tv":
        return jnp.abs(p_RTk - q_RTk).sum(-1) / 2.0
    return (p_RTk * jnp.log(p_RTk / q_RTk)).sum(-1)


def _with_rest(logp_RTK) -> jax.Array:
    """Probabilities [R,T,K+1] of K tokens and of all others together."""
    p_RTK = jnp.exp(logp_RTK)
    return jnp.maximum(jnp.concatenate([p_RTK, 1.0 - p_RTK.sum(-1, keepdims=True)], axis=-1), LEAST)


DIVERGENCES = {"tv": total_variation, "kl": kl_divergence}
