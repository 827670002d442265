"""ARM, the advantage re-weighting of ProGRPO (arXiv 2602.05281): answers the policy is sure of gain less.

    A'_i = A_i + alpha (c(q) - c(o_i | q))   in groups with a right answer,   A_i in others
    c(o | q) = exp(mean of log p(o_t) over the ceil(fraction |o|), at least one, least likely tokens of o)
    c(q) = exp(mean_t log p(q_t | q_<t))

on top of GRPO's advantages, clip-higher and token mean. Both confidences are of the policy that sampled, at the
rollout's temperature, and constant: c(o | q) from the rollout's log-probs, before truncation, c(q) from a forward over
each prompt.

fraction .2 as published; alpha is not, and .3 is ours. In a group whose answers are all right A is 0, and the second
term alone spreads them; `all_right=False` leaves such groups alone. alpha = 0 is DAPO's loss on GRPO's advantages.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from iiblpo_jax.common import masked
from iiblpo_jax.objectives.advantage import standardised
from iiblpo_jax.objectives.dapo import dapo
from iiblpo_jax.objectives.interface import Objective
from iiblpo_jax.objectives.rows import PROMPT_LOGP, Rows


def arm(
    *, max_tokens: int, clip_low=0.2, clip_high=0.28, aggregate="token-mean", alpha=0.3, fraction=0.2, all_right=True
) -> Objective:
    base = dapo(max_tokens=max_tokens, clip_low=clip_low, clip_high=clip_high, aggregate=aggregate)
    advantage = partial(reweighted, alpha=alpha, fraction=fraction, all_right=all_right)
    return dataclasses.replace(base, name="arm", advantage=advantage, needs=(PROMPT_LOGP,))


def reweighted(o: Rows, *, alpha: float, fraction: float, all_right: bool) -> jax.Array:
    """A'_i [R] of the module's formula."""
    kept_R = o.keep_R != 0
    right_R = masked.group_count(o.group_R, kept_R & (o.correct_R > 0))
    applies_R = right_R > 0
    if not all_right:
        applies_R &= right_R < masked.group_count(o.group_R, kept_R)
    bonus_R = alpha * (jnp.exp(o.extras[PROMPT_LOGP]) - confidence(o, fraction=fraction))
    return standardised(o) + jnp.where(applies_R, bonus_R, 0.0)


def confidence(o: Rows, *, fraction: float) -> jax.Array:
    """c(o | q) [R], 1 of a row without a token."""
    least_first_RT = jnp.sort(jnp.where(o.mask_RT > 0, o.raw_logp_RT, jnp.inf), axis=1)
    count_R = jnp.maximum(1, jnp.ceil(fraction * o.mask_RT.sum(1)).astype(jnp.int32))
    chosen_RT = (jnp.arange(o.t) < count_R[:, None]) & (least_first_RT < jnp.inf)
    return jnp.exp(masked.mean(least_first_RT, chosen_RT, axis=1))
