"""DARLING (Li et al., arXiv 2509.02534): a reward counts as far as the answer differs from the others of its prompt.

    R'_i = R_i * (answers of the group whose plan is not that of i) / (n - 1)
    A_i = R'_i - mean_g R',   token mean

n answers of the group are trained on. Product, group mean without a standard deviation and token mean are the paper's,
and so is counting what differs *in meaning*, by a learnt classifier. Here the task says exactly which answers are alike
(data.task.Task.plan, which also counts distinct right answers in evaluation), so a task without plans is refused. The
division by n - 1 is our reading of its normalisation: 1 where all differ, and then these are `grpo` without the
standard deviation; 0 where all are alike, and nothing is learnt from them. Malformed answers are alike.
"""

import dataclasses

import jax
import jax.numpy as jnp

from iiblpo_jax.common import masked
from iiblpo_jax.objectives.advantage import centred
from iiblpo_jax.objectives.grpo import grpo
from iiblpo_jax.objectives.interface import Objective
from iiblpo_jax.objectives.rows import PLAN, Rows


def darling(*, max_tokens: int, clip_low=0.2, clip_high=0.2, aggregate="token-mean") -> Objective:
    base = grpo(max_tokens=max_tokens, clip_low=clip_low, clip_high=clip_high, aggregate=aggregate)
    return dataclasses.replace(base, name="darling", advantage=centred, reward_shaping=differing, needs=(PLAN,))


def differing(rows: Rows, step: jax.Array | None) -> jax.Array:
    """R' [R] of the module's formula."""
    del step
    n_R = masked.group_count(rows.group_R, rows.keep_R)
    alike_R = masked.group_count(_group_and_plan(rows), rows.keep_R)
    return rows.reward_R * (n_R - alike_R) / jnp.maximum(n_R - 1.0, 1.0)


def _group_and_plan(rows: Rows) -> jax.Array:
    """One label [R] for both."""
    pairs_R2 = jnp.stack([rows.group_R, rows.extras[PLAN].astype(jnp.int32)], axis=1)
    _, label_R = jnp.unique(pairs_R2, axis=0, return_inverse=True, size=rows.count)
    return label_R.reshape(rows.count)
