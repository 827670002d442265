"""TSPO (arXiv 2601.22776): the turn in which the answer first came into sight is worth something even if it fails.

    r_{i,k} = alpha 1[k <= t_i]                                   reward of turn k of a wrong response i
    A_{i,k} = (r_{i,k} - mean_j r_{j,k}) / (std_j r_{j,k} + 1e-6) in groups that are all wrong, every token of turn k
    A_i     = (R_i - mean) / (std + 1e-6)                         in all others: `grpo`

t_i is the first turn whose observation says the gold answer (first-occurrence latent reward: no reward model, no
annotation); no turn is rewarded where none does. A reward for the outcome alone is homogenised twice: all turns of a
response get the same, and all responses of a group that failed.

Known from its abstract and notes; the formulas are reconstructed. Ours: turn k is compared among the kept responses
that have one; the gold answer counts where it stands as words of its own; turns are numbered from 0, and what is said
behind the last observation is a turn, too; std with ddof 1.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from iiblpo_jax.common import masked
from iiblpo_jax.objectives.advantage import STD_EPSILON, standardised
from iiblpo_jax.objectives.grpo import grpo
from iiblpo_jax.objectives.interface import Objective
from iiblpo_jax.objectives.rows import SEEN, TURN, Rows


def tspo(*, max_tokens: int, alpha=0.5, clip_low=0.2, clip_high=0.2, aggregate="token-mean") -> Objective:
    base = grpo(max_tokens=max_tokens, clip_low=clip_low, clip_high=clip_high, aggregate=aggregate)
    advantage = functools.partial(turn_advantage, alpha=alpha)
    return dataclasses.replace(base, name="tspo", advantage=advantage, needs=(SEEN, TURN))


def turn_advantage(o: Rows, *, alpha: float) -> jax.Array:
    """A [R,T] of the module's formula; 0 on observations."""
    turn_RT, seen_R, keep_R = o.extras[TURN].astype(jnp.int32), o.extras[SEEN], o.keep_R != 0
    failed_R = masked.group_max(o.correct_R, o.group_R, keep_R) == 0

    def credit(k, advantage_RT):
        here_RT = (turn_RT == k) & (o.mask_RT > 0)
        among_R = keep_R & here_RT.any(1)
        reward_R = jnp.where(k <= seen_R, alpha, 0.0)
        return jnp.where(
            here_RT & failed_R[:, None], _standardised(reward_R, o.group_R, among_R)[:, None], advantage_RT
        )

    outcome_RT = jnp.where(turn_RT >= 0, jnp.where(failed_R, 0.0, standardised(o))[:, None], 0.0)
    return jax.lax.fori_loop(0, jnp.max(turn_RT) + 1, credit, outcome_RT)


def _standardised(reward_R, group_R, among_R):
    differ_R = masked.group_spread(reward_R, group_R, among_R) > 0
    std_R = masked.group_std(reward_R, group_R, among_R, ddof=1)
    return jnp.where(differ_R, (reward_R - masked.group_mean(reward_R, group_R, among_R)) / (std_R + STD_EPSILON), 0.0)
