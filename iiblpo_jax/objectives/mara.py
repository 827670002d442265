"""MARA, mode-anchored reward augmentation (GX-Chen et al., arXiv 2510.20817): as much for rare right answers.

The optimum of E[R] - beta KL(pi || pi_ref) is pi_ref(y) exp(R(y) / beta): of right answers, equally rewarded, it keeps
the proportions of the reference, and the likeliest takes nearly all. Of a group's right answers, z the one that the
reference finds likeliest,

    R'(y) = R(z) + beta (log pi_ref(z) - log pi_ref(y))   of right answers,   R(y) of wrong ones
    A_i = R'_i - mean_g R'

so that pi_ref exp(R' / beta) is the same for all right answers: the optimum is uniform over them.

beta is that of the KL in the loss, update.kl_coef, and log pi_ref is of whole responses. From the abstract: that equal
rewards with a small KL specify one mode, and that a small change of the rewards makes the optimum uniform over all good
ones. The formula is our reconstruction. So are the advantages and the aggregate, those of `dr_grpo`: after a division
by the standard deviation, or where `advantage.weight` weighs prompts, beta would no longer be the beta of the KL.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from iiblpo_jax.common import masked
from iiblpo_jax.objectives.dr_grpo import dr_grpo
from iiblpo_jax.objectives.interface import Objective
from iiblpo_jax.objectives.rows import REF_LOGP, Rows


def mara(
    *, max_tokens: int, clip_low=0.2, clip_high=0.2, aggregate="seq-mean-token-sum-norm", reference_kl=0.0
) -> Objective:
    base = dr_grpo(max_tokens=max_tokens, clip_low=clip_low, clip_high=clip_high, aggregate=aggregate)
    return dataclasses.replace(
        base, name="mara", reward_shaping=partial(anchored, beta=reference_kl), needs=(REF_LOGP,)
    )


def anchored(rows: Rows, step: jax.Array | None, *, beta: float) -> jax.Array:
    """R' [R] of the module's formula."""
    del step
    assert rows.ref_logp_RT is not None, "Objective.needs makes `inform` read the reference"
    right_R = (rows.correct_R > 0) & (rows.keep_R != 0)
    logp_R = masked.sum(rows.ref_logp_RT, rows.mask_RT, axis=1)
    anchor_R = masked.group_max(logp_R, rows.group_R, right_R)
    reward_R = masked.group_max(rows.reward_R, rows.group_R, right_R & (logp_R == anchor_R))
    return jnp.where(right_R, reward_R + beta * (anchor_R - logp_R), rows.reward_R)
