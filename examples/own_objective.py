"""A method of one's own: REINFORCE against the group's mean. --config.objective.path=examples/own_objective.py:make"""

import jax.numpy as jnp

from iiblpo_jax.common import masked
from iiblpo_jax.objectives import Objective, TokenLoss


def make(*, max_tokens, aggregate="token-mean", scale=1.0):
    def advantage(rows):
        return scale * (rows.reward_R - masked.group_mean(rows.reward_R, rows.group_R, rows.keep_R))

    def policy_loss(batch, a_RT):
        ratio_RT, never_RT = jnp.exp(batch.logp_RT - batch.old_logp_RT), jnp.zeros_like(a_RT)
        return TokenLoss(-a_RT * batch.importance_RT * batch.logp_RT, ratio_RT, never_RT, never_RT)

    return Objective(
        name="reinforce", advantage=advantage, policy_loss=policy_loss, aggregate=aggregate, max_tokens=max_tokens
    )
