"""GRPO (Shao et al., arXiv 2402.03300), as IIB-LPO trains with it.

    A_i = (R_i - mean_g) / (std_g + 1e-6)
    loss = mean over tokens of max(-A r_t, -A clip(r_t, 1 - .2, 1 + .2)),   r_t = pi / pi_old

The original averages tokens within a response first (`seq-mean-token-mean`) and adds a KL of 0.04: both settings.
"""

from functools import partial

from iiblpo_jax.objectives.advantage import standardised
from iiblpo_jax.objectives.clipping import ppo_loss
from iiblpo_jax.objectives.interface import Objective


def grpo(*, max_tokens: int, clip_low=0.2, clip_high=0.2, aggregate="token-mean") -> Objective:
    return Objective(
        name="grpo",
        advantage=standardised,
        policy_loss=partial(ppo_loss, clip_low=clip_low, clip_high=clip_high),
        aggregate=aggregate,
        max_tokens=max_tokens,
    )
