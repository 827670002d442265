"""REINFORCE++ (Hu, arXiv 2501.03262): advantages are normalised over the whole rollout, not within a prompt's group.

    reinforce_pp            A_i = (R_i - mean) / std
    reinforce_pp_baseline   A_i = (D_i - mean D) / std D,   D_i = R_i - mean_g

Mean and standard deviation are over all tokens of the kept responses (a long response counts more), variance unbiased.
PPO-clip, token mean. The paper's KL penalty in the reward is update.kl_coef here.
"""

import dataclasses

import jax
import jax.numpy as jnp

from iiblpo_jax.common import masked
from iiblpo_jax.objectives.advantage import centred
from iiblpo_jax.objectives.grpo import grpo
from iiblpo_jax.objectives.interface import Objective
from iiblpo_jax.objectives.rows import Rows

EPSILON = 1e-8


def reinforce_pp(*, max_tokens: int, clip_low=0.2, clip_high=0.2, aggregate="token-mean") -> Objective:
    base = grpo(max_tokens=max_tokens, clip_low=clip_low, clip_high=clip_high, aggregate=aggregate)
    return dataclasses.replace(base, name="reinforce_pp", advantage=global_advantage)


def reinforce_pp_baseline(*, max_tokens: int, clip_low=0.2, clip_high=0.2, aggregate="token-mean") -> Objective:
    base = grpo(max_tokens=max_tokens, clip_low=clip_low, clip_high=clip_high, aggregate=aggregate)
    return dataclasses.replace(base, name="reinforce_pp_baseline", advantage=global_advantage_over_groups)


def global_advantage(o: Rows) -> jax.Array:
    """A_i [R] of `reinforce_pp`."""
    return whitened(o.reward_R, o)


def global_advantage_over_groups(o: Rows) -> jax.Array:
    """A_i [R] of `reinforce_pp_baseline`."""
    return whitened(centred(o), o)


def whitened(x_R: jax.Array, o: Rows) -> jax.Array:
    """x with mean 0 and variance 1 over the tokens of the kept rows; exactly 0 where all of x are equal."""
    tokens_R = o.mask_RT.sum(1) * (o.keep_R != 0)
    differs = masked.group_spread(x_R, jnp.zeros_like(o.group_R), tokens_R) > 0
    total = jnp.maximum(tokens_R.sum(), 1.0)
    centred_R = x_R - (tokens_R * x_R).sum() / total
    variance = (tokens_R * jnp.square(centred_R)).sum() / jnp.maximum(total - 1.0, 1.0)
    # A rounded mean would leave a residue, which the small epsilon makes large.
    return jnp.where(differs, centred_R * jax.lax.rsqrt(variance + EPSILON), 0.0)
