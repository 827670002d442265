"""Dr. GRPO (Liu et al., arXiv 2503.20783): GRPO without its two biases.

A_i = R_i - mean_g                                     (no division by the standard deviation: no difficulty bias)
loss = 1 / (rows * T) * sum over tokens of PPO-clip    (T = longest response allowed: no length bias)
"""

import dataclasses

from iiblpo_jax.objectives.advantage import centred
from iiblpo_jax.objectives.grpo import grpo
from iiblpo_jax.objectives.interface import Objective


def dr_grpo(*, max_tokens: int, clip_low=0.2, clip_high=0.2, aggregate="seq-mean-token-sum-norm") -> Objective:
    base = grpo(max_tokens=max_tokens, clip_low=clip_low, clip_high=clip_high, aggregate=aggregate)
    return dataclasses.replace(base, name="dr_grpo", advantage=centred)
