"""The update: several optimizer steps on one rollout, in one jitted program.

  1. log-probs of the kept trajectories under the policy as it is now (pi_old); skipped when there is one step only
  2. epochs x minibatches, shuffled; a token's weight is fixed over the whole minibatch
  3. piece by piece (pieces.py): forward, sum(weights * losses), gradients added up (minibatch.py)
  4. clip, AdamW; a step whose loss, gradient or ratio is not finite, or whose mean ratio exceeds MAX_RATIO, changes
     nothing and is counted

Because weights are fixed before rows are split, and every sum runs over tokens, the loss depends neither on the
microbatch size, nor on padding, nor on how rows lie on devices.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import optax

from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.objectives.interface import Objective
from iiblpo_jax.update.gradient import MinibatchGradient
from iiblpo_jax.update.measures import metrics
from iiblpo_jax.update.rows import UpdateRows
from iiblpo_jax.update.settings import UpdateSettings
from iiblpo_jax.update.state import TrainState

MAX_RATIO = 1e3  # mean probability ratio beyond which rollout and update no longer speak of one policy


def make_update(
    settings: UpdateSettings,
    objective: Objective,
    model_config: ModelConfig,
    optimizer: optax.GradientTransformation,
    *,
    state_shardings=None,
):
    """The jitted update: (state, UpdateRows, key) -> (state, metrics).

    `state` is donated: do not use it again. Metrics are float32 scalars named as in the README. `state_shardings` pins
    where the new state lies; left to the compiler it may differ from the old one's, and every program that takes the
    state would be compiled a second time.
    """
    gradient = MinibatchGradient(
        settings=settings,
        objective=objective,
        model_config=model_config,
        shardings=None if state_shardings is None else state_shardings.params,
    )
    return jax.jit(partial(_update, gradient, optimizer), donate_argnums=0, out_shardings=(state_shardings, None))


def _update(gradient: MinibatchGradient, optimizer, state: TrainState, rows: UpdateRows, key):
    with meshes.using(gradient.settings.mesh):
        return _optimizer_steps(gradient, optimizer, state, rows, key)


def _optimizer_steps(gradient, optimizer, state, rows, key):
    s, n = gradient.settings, rows.prompt_len_N.shape[0]
    whole_groups = gradient.objective.needs_groups
    s.check_rows(n, whole_groups=whole_groups)
    if not s.pack_tokens and not s.microbatch:  # the whole minibatch, also where all minibatches are read at once
        gradient = dataclasses.replace(gradient, settings=dataclasses.replace(s, microbatch=n // s.minibatches))
    rows = rows if s.prefix_loss else rows.replace(mask_NT=rows.mask_NT * rows.own_mask_NT)
    old_logp_NT = gradient.log_probs(state.params, rows)[0] if s.epochs * s.minibatches > 1 else None

    def step(state, inputs):
        order_n, step_key = inputs
        minibatch = jax.tree.map(lambda x: x[order_n], (rows, old_logp_NT))
        return _optimizer_step(gradient, optimizer, state, *minibatch, step_key)

    order_key, steps_key = jax.random.split(key)
    order_In = shuffled(
        order_key, n, epochs=s.epochs, minibatches=s.minibatches, unit=s.unit(whole_groups=whole_groups)
    )
    state, totals_I = jax.lax.scan(step, state, (order_In, jax.random.split(steps_key, order_In.shape[0])))
    totals = {name: x_I.max() if name.endswith("_max") else x_I.sum() for name, x_I in totals_I.items()}
    return state.replace(step=state.step + 1), metrics(totals)


def _optimizer_step(gradient, optimizer, state, rows, old_logp_nT, key):
    loss, gradients, totals = gradient(state.params, rows, old_logp_nT, step=state.step, key=key)
    norm = optax.tree.norm(gradients)
    ratio = totals["ratio"] / jnp.maximum(totals["tokens"], 1.0)
    fine = jnp.isfinite(loss) & jnp.isfinite(norm) & (ratio <= MAX_RATIO)  # false where the ratio is NaN
    changes, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    new = (optax.apply_updates(state.params, changes), opt_state)
    params, opt_state = jax.tree.map(partial(jnp.where, fine), new, (state.params, state.opt_state))
    totals |= {"loss": loss, "grad_norm": norm, "steps": jnp.float32(1)}
    totals = {name: jnp.where(fine, x, 0.0) for name, x in totals.items()} | {"skipped": 1.0 - fine}
    return state.replace(params=params, opt_state=opt_state), totals


def shuffled(key, n: int, *, epochs: int, minibatches: int, unit: int = 1):
    """[epochs * minibatches, n / minibatches] row indices: every epoch a new permutation of blocks of `unit` rows."""
    blocks_EU = jax.vmap(lambda k: jax.random.permutation(k, n // unit))(jax.random.split(key, epochs))
    order_EUu = blocks_EU[..., None] * unit + jnp.arange(unit)
    return order_EUu.reshape(epochs * minibatches, n // minibatches)
