"""RLOO (Ahmadian et al., arXiv 2402.14740): REINFORCE with the mean of the other samples as baseline.

    A_i = R_i - mean_{j != i} R_j = n / (n - 1) * (R_i - mean_g)
    loss = mean over responses of sum over tokens          (the whole response is one action)

At the first optimizer step (r = 1) the gradient is exactly -mean_i A_i grad log pi(o_i); on later steps the token-level
clip keeps reused samples honest.
"""

import dataclasses

from iiblpo_jax.objectives.advantage import leave_one_out
from iiblpo_jax.objectives.grpo import grpo
from iiblpo_jax.objectives.interface import Objective


def rloo(*, max_tokens: int, clip_low=0.2, clip_high=0.2, aggregate="seq-mean-token-sum") -> Objective:
    base = grpo(max_tokens=max_tokens, clip_low=clip_low, clip_high=clip_high, aggregate=aggregate)
    return dataclasses.replace(base, name="rloo", advantage=leave_one_out)
