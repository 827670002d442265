"""The update: several optimizer steps on one rollout, in one jitted program.

  1. log-probs of the kept trajectories under the policy as it is now (pi_old); skipped when there is one step only
  2. epochs x minibatches, shuffled; a token's weight is fixed over the whole minibatch
  3. piece by piece (microbatches.py): forward, sum(weights * losses), gradients added up (gradient.py)
  4. clip, AdamW at the learning rate of this rollout; a step whose loss, gradient or ratio is not finite, or whose mean
     ratio exceeds MAX_RATIO, changes nothing and is counted; so does one with nothing to learn from, where momentum
     alone would move the policy

Because weights are fixed before rows are split, and every sum runs over tokens, the loss depends neither on the
microbatch size, nor on padding, nor on how rows lie on devices.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.adapters.adapted import Adapted
from iiblpo_jax.objectives.novelty import Novelty, learnt
from iiblpo_jax.objectives.rows import Rows
from iiblpo_jax.update.gradient import MinibatchGradient
from iiblpo_jax.update.measures import metrics
from iiblpo_jax.update.optimizer import Schedule
from iiblpo_jax.update.state import TrainState, averaged

MAX_RATIO = 1e3  # mean probability ratio beyond which rollout and update no longer speak of one policy


def make_update(
    gradient: MinibatchGradient, optimizer: optax.GradientTransformation, schedule: Schedule, *, state_shardings=None
):
    """The jitted update: (state, Rows, key, teacher_VD) -> (state, metrics); of an adapter with its base as the fifth.

    `state` is donated: do not use it again. `teacher_VD` are the output weights of a teacher that is another model and
    whose whole distributions are distilled; else there is none. `optimizer` is at the peak of its learning rates, and
    `schedule` says what share of its changes is applied. Metrics are float32 scalars named as in the README.
    `state_shardings` pins where the new state lies; None = where the compiler likes.
    """
    update = partial(_update, gradient, optimizer, schedule)
    return jax.jit(update, donate_argnums=0, out_shardings=(state_shardings, None))


def _update(
    gradient: MinibatchGradient,
    optimizer,
    schedule: Schedule,
    state: TrainState,
    rows: Rows,
    key,
    teacher_VD=None,
    base: Adapted | None = None,
):
    with meshes.using(gradient.settings.mesh):
        share = schedule.share(state.moved)
        after, found = _optimizer_steps(gradient.over(base), optimizer, share, state, rows, key, teacher_VD)
        return after, found | {"optim/lr": schedule.rate(state.moved)}


def _optimizer_steps(gradient, optimizer, share, state, rows, key, teacher_VD):
    s, n = gradient.settings, rows.count
    whole_groups = gradient.objective.needs_groups
    s.check_rows(n, whole_groups=whole_groups)
    gradient = gradient.sized_for(n)
    # From here on the mask says what the loss counts; everything below, aggregates and metrics too, goes by it.
    rows = rows if s.prefix_loss else rows.replace(mask_RT=rows.mask_RT * rows.own_mask_RT)
    # pi_old must be read before the first step moves the policy. One step alone starts at pi_old: its ratio is exactly
    # 1, and the forward of the loss itself is the reading.
    old_logp_RT = gradient.log_probs(state.params, rows)[0] if s.epochs * s.minibatches > 1 else None
    taught = partial(gradient, teacher_VD=gradient.teacher_weights(state, teacher_VD))

    def step(state, inputs):  # rows are gathered inside the scan: shuffled copies of all epochs would be alive at once
        order_n, step_key = inputs
        minibatch, old_logp_nT = jax.tree.map(lambda x: x[order_n], (rows, old_logp_RT))
        return optimizer_step(taught, optimizer, share, state, minibatch, old_logp_nT, step_key)

    order_key, steps_key = jax.random.split(key)
    order_In = shuffled(
        order_key, n, epochs=s.epochs, minibatches=s.minibatches, unit=s.unit(whole_groups=whole_groups)
    )
    state, totals_I = jax.lax.scan(step, state, (order_In, jax.random.split(steps_key, order_In.shape[0])))
    totals = {name: x_I.max() if name.endswith("_max") else x_I.sum() for name, x_I in totals_I.items()}
    moved = state.moved + (totals["moved"] > 0)
    state = state.replace(
        step=state.step + 1,
        moved=moved,
        novelty=_seen(state.novelty, rows),
        average=averaged(state.average, state.params, s.average_decay),
    )
    return state, metrics(totals)


def _seen(novelty: Novelty | None, rows: Rows) -> Novelty | None:
    """What is no longer new once these rows have been trained on, whether or not the policy moved."""
    if novelty is None:
        return None
    return learnt(novelty, rows.tokens_RC, rows.prompt_len_R + rows.length_R, rows.mask_RT.any(1))


def optimizer_step(gradient, optimizer, share, state, rows, old_logp_nT, key):
    """One step of the optimizer: (state, totals); a step that is not fine, or has nothing to learn from, moves nothing.

    `gradient` is a MinibatchGradient, or gives (loss, gradients, totals) of the same arguments.
    """
    loss, gradients, totals = gradient(state.params, rows, old_logp_nT, step=state.step, key=key)
    norm = optax.tree.norm(gradients)
    ratio = totals["ratio"] / jnp.maximum(totals["tokens"], 1.0)
    fine = jnp.isfinite(loss) & jnp.isfinite(norm) & (ratio <= MAX_RATIO)  # false where the ratio is NaN
    moves = fine & (totals["taught"] > 0)
    # Selected, not branched on: under a mesh every device must take part in the same collectives.
    changes, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    changes = jax.tree.map(lambda x: share * x, changes)
    new = (optax.apply_updates(state.params, changes), opt_state)
    params, opt_state = jax.tree.map(partial(jnp.where, moves), new, (state.params, state.opt_state))
    # A minibatch of which no token counts has neither; as zeros they would water down the means of those that have.
    totals |= {"loss": loss, "grad_norm": norm, "steps": (totals["tokens"] > 0).astype(jnp.float32)}
    totals = {name: jnp.where(fine, x, 0.0) for name, x in totals.items()}
    totals |= {"moved": 1.0 * moves, "skipped": 1.0 - fine, "empty": 1.0 * (fine & ~moves)}
    return state.replace(params=params, opt_state=opt_state), totals


def shuffled(key, n: int, *, epochs: int, minibatches: int, unit: int = 1):
    """[epochs * minibatches, n / minibatches] row indices: every epoch a new permutation of blocks of `unit` rows."""
    blocks_EU = jax.vmap(lambda k: jax.random.permutation(k, n // unit))(jax.random.split(key, epochs))
    order_EUu = blocks_EU[..., None] * unit + jnp.arange(unit)
    return order_EUu.reshape(epochs * minibatches, n // minibatches)
