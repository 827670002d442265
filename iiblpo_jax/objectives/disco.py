"""DisCO (Li et al., arXiv 2505.12366): a discriminative objective, without clipping and without a standard deviation.

Of every question, right answers should score above wrong ones:

    J = mean over questions of [ mean_right s - tau log mean_wrong exp(s / tau) ]
    s = mean_t pi / pi_old ("L-ratio", tau 1)   or   mean_t log pi ("log-L", tau 10)
    loss = -J + sg(max(beta (KL - delta), 0)) * KL,   KL = mean over tokens of log pi_old - log pi

The hardest wrong answers weigh most; `negatives=mean` weighs them equally (DisCO-b). A question without both kinds adds
0 and still counts among the questions. The constraint is a squared hinge: it pulls beyond delta alone.
Needs whole groups in a minibatch, and takes right and wrong from the verifier, not from advantages.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from iiblpo_jax.common import masked
from iiblpo_jax.objectives.advantage import centred
from iiblpo_jax.objectives.clipping import ratio
from iiblpo_jax.objectives.grpo import grpo
from iiblpo_jax.objectives.interface import Batch, Objective

TAU = {"ratio": 1.0, "logp": 10.0}


def disco(
    *,
    max_tokens: int,
    aggregate="token-mean",
    score="ratio",
    negatives="hardest",
    tau=None,
    beta=1e3,
    delta=1e-4,
) -> Objective:
    loss = partial(
        disco_loss,
        score=SCORES[score],
        tau=TAU[score] if tau is None else tau,
        hardest=negatives == "hardest",
        beta=beta,
        delta=delta,
    )
    base = grpo(max_tokens=max_tokens, aggregate=aggregate)
    return dataclasses.replace(
        base, name="disco", advantage=centred, group_loss=loss, needs_groups=True, whole_minibatch=True
    )


def disco_loss(batch: Batch, *, score, tau: float, hardest: bool, beta: float, delta: float) -> jax.Array:
    """The module's loss over the groups of a minibatch."""
    rows = batch.rows
    counted_R = rows.mask_RT.any(1)
    right_R, wrong_R = (counted_R & (rows.correct_R == x) for x in (1, 0))
    score_R = score(batch)
    of_right_R = masked.group_mean(score_R, rows.group_R, right_R)
    if hardest:
        top_R = jax.lax.stop_gradient(masked.group_max(score_R, rows.group_R, wrong_R))
        # Others may score far above the best wrong one: their exp must not overflow on the way to being left out.
        mean_R = masked.group_mean(jnp.exp(jnp.where(wrong_R, score_R - top_R, 0.0) / tau), rows.group_R, wrong_R)
        of_wrong_R = top_R + tau * jnp.log(jnp.where(mean_R > 0, mean_R, 1.0))
    else:
        of_wrong_R = masked.group_mean(score_R, rows.group_R, wrong_R)
    both_R = _any(right_R, rows) & _any(wrong_R, rows)
    # Every question once: each of its n counted rows has 1 / n of it.
    share_R = jnp.where(counted_R, 1.0 / jnp.maximum(masked.group_count(rows.group_R, counted_R), 1.0), 0.0)
    gap = masked.sum(share_R * (of_right_R - of_wrong_R), both_R) / jnp.maximum(share_R.sum(), 1.0)
    kl = masked.mean(batch.old_logp_RT - batch.logp_RT, rows.mask_RT)
    return -gap + jax.lax.stop_gradient(jnp.maximum(beta * (kl - delta), 0.0)) * kl


def _any(which_R, rows):
    return masked.group_count(rows.group_R, which_R) > 0


def mean_ratio(batch: Batch) -> jax.Array:
    """[R] mean over tokens of pi / pi_old."""
    return masked.mean(ratio(batch), batch.rows.mask_RT, axis=1)


def mean_logp(batch: Batch) -> jax.Array:
    """[R] mean over tokens of log pi."""
    return masked.mean(batch.logp_RT, batch.rows.mask_RT, axis=1)


SCORES = {"ratio": mean_ratio, "logp": mean_logp}
