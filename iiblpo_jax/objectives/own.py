"""A method of the user's own: what the function that `objective.path` names returns.

    def make(*, max_tokens, clip_low=0.2, clip_high=0.2, aggregate="token-mean", my_option=1.0) -> Objective: ...

as the functions of this folder are. It is tried once on shapes, so that an error in it is one line and comes before
anything is compiled.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from iiblpo_jax.common import own_code
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.objectives.aggregate import AGGREGATES
from iiblpo_jax.objectives.interface import Batch, Objective, advantages
from iiblpo_jax.objectives.rows import ON_REQUEST, REF_LOGP, TOP_LOGP, TOP_TOKEN, TURN, Rows

KEY = "objective.path"
R, T, PROMPT = 4, 3, 2  # sizes of the trial


def load_objective(reference: str, *, max_tokens: int, overrides: Mapping) -> Objective:
    """The method that `file.py:name` makes of `max_tokens` and the overrides.

    Raises:
      InputError: the function cannot be had, does not take an override, or returns no Objective that works.
    """
    objective = own_code.call(reference, {"max_tokens": max_tokens}, overrides, key=KEY)
    if not isinstance(objective, Objective):
        raise InputError(f"{KEY} = {reference!r} returned a {type(objective).__name__}; return an Objective")
    if objective.aggregate not in AGGREGATES:
        raise InputError(
            f"{KEY} = {reference!r}: unknown aggregate {objective.aggregate!r}; use one of {', '.join(AGGREGATES)}"
        )
    for name in objective.needs:
        if name not in ON_REQUEST:
            raise InputError(f"{KEY} = {reference!r} needs {name!r}, which there is not; use {', '.join(ON_REQUEST)}")
    try:
        hash(objective)
        advantage, losses = jax.eval_shape(lambda rows: _trial(objective, rows), _rows_for(objective))
    except Exception as error:  # whatever the user's functions raise
        raise own_code.error_inside(error, reference, key=KEY) from error
    if advantage.shape not in ((R,), (R, T)):
        raise InputError(f"{KEY} = {reference!r}: its advantage has the shape {advantage.shape}; return [R] or [R, T]")
    if losses.shape != (R, T):
        raise InputError(f"{KEY} = {reference!r}: its policy_loss has the shape {losses.shape}; return [R, T]")
    return objective


def _trial(objective: Objective, rows: Rows) -> tuple[jax.Array, jax.Array]:
    """The advantage and the losses of every token; the rest of the method is run as well."""
    advantage = objective.advantage(rows)
    if objective.bonus is not None:
        advantage += objective.bonus(rows, jnp.int32(0))[(...,) + (None,) * (advantage.ndim - 1)]
    rows = rows.replace(advantage_R=advantages(objective, rows, step=jnp.int32(0)))
    batch = Batch(
        rows=rows,
        logp_RT=rows.raw_logp_RT,
        entropy_RT=rows.raw_logp_RT,
        old_logp_RT=rows.raw_logp_RT,
        importance_RT=rows.mask_RT,
        step=jnp.int32(0),
        key=jax.random.key(0),
        top_logp_RTK=rows.extras.get(TOP_LOGP),
    )
    _, token = objective.loss(batch, objective.weights(batch))
    return advantage, token.loss_RT


def _rows_for(objective: Objective) -> Rows:
    rows, top = _rows(), jnp.zeros((R, T, objective.record))
    extras = {name: rows.reward_R for name in objective.needs if name != REF_LOGP}
    if TURN in extras:
        extras[TURN] = jnp.zeros((R, T), jnp.int32)
    if objective.record:
        extras |= {TOP_TOKEN: top.astype(jnp.int32), TOP_LOGP: top}
    return rows.replace(extras=extras)


def _rows() -> Rows:
    ints, numbers, tokens = jnp.zeros(R, jnp.int32), jnp.zeros(R), jnp.zeros((R, T))
    return Rows(
        tokens_RC=jnp.zeros((R, PROMPT + T), jnp.int32),
        prompt_len_R=ints,
        length_R=ints,
        mask_RT=tokens,
        own_mask_RT=tokens,
        raw_logp_RT=tokens,
        reward_R=numbers,
        correct_R=numbers,
        group_R=ints,
        trajectory_R=ints,
        parent_R=ints,
        branch_at_R=ints,
        keep_R=jnp.ones(R, bool),
        ib_score_R=numbers,
        advantage_R=numbers,
        ref_logp_RT=tokens,
    )
