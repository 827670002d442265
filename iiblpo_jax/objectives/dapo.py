"""DAPO (Yu et al., arXiv 2503.14476): GRPO with clip-higher and token-level averaging.

    loss = mean over all tokens of max(-A r_t, -A clip(r_t, 1 - .2, 1 + .28))

The higher upper bound lets unlikely tokens grow. DAPO's dynamic sampling belongs to the sampler, not to the objective.
"""

import dataclasses

from iiblpo_jax.objectives.grpo import grpo
from iiblpo_jax.objectives.interface import Objective


def dapo(*, max_tokens: int, clip_low=0.2, clip_high=0.28, aggregate="token-mean") -> Objective:
    base = grpo(max_tokens=max_tokens, clip_low=clip_low, clip_high=clip_high, aggregate=aggregate)
    return dataclasses.replace(base, name="dapo")
