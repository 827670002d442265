"""UCPO (arXiv 2605.00365): of the right answers to a prompt, the unlikely ones gain what the likely ones lose.

Of the n right answers of a group, q = softmax over them of the mean log-prob of their tokens:

    A'_i = A_i * n * [(1 - tau) / n + tau * (1 / q_i) / sum_j (1 / q_j)]   of right answers,   A_i of wrong ones

on top of GRPO's advantages. The factors of a group sum to n: its right answers together keep their mass. tau .3 as
published; 0 is GRPO. Log-probs are the rollout's, before truncation, and constant.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from iiblpo_jax.common import masked
from iiblpo_jax.objectives.advantage import standardised
from iiblpo_jax.objectives.grpo import grpo
from iiblpo_jax.objectives.interface import Objective
from iiblpo_jax.objectives.rows import Rows


def ucpo(*, max_tokens: int, clip_low=0.2, clip_high=0.2, aggregate="token-mean", tau=0.3) -> Objective:
    base = grpo(max_tokens=max_tokens, clip_low=clip_low, clip_high=clip_high, aggregate=aggregate)
    return dataclasses.replace(base, name="ucpo", advantage=partial(uncertain_advantage, tau=tau))


def uncertain_advantage(o: Rows, *, tau: float) -> jax.Array:
    """A'_i [R] of the module's formula."""
    right_R = (o.correct_R > 0) & (o.keep_R != 0)
    mean_R = masked.mean(o.raw_logp_RT, o.mask_RT, axis=1)
    # 1 / q_i is proportional to exp(-mean_i); shifted so that the largest is 1.
    low_R = -masked.group_max(-mean_R, o.group_R, right_R)
    inverse_R = jnp.exp(low_R - jnp.where(right_R, mean_R, low_R))
    share_R = inverse_R / jnp.maximum(masked.group_sum(inverse_R, o.group_R, right_R), 1e-30)
    factor_R = 1.0 - tau + tau * masked.group_count(o.group_R, right_R) * share_R
    return standardised(o) * jnp.where(right_R, factor_R, 1.0)
