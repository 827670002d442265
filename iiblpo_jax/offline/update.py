"""One optimizer step on cases: the loss of log-probs of whole responses, and its exact gradient piece by piece.

Every loss here is a function of few numbers a response, which need the whole of it but no activations. So they are read
first, the loss and its gradient with respect to them are taken over all cases, and the chain rule through the model
goes piece by piece (gradient caching; Gao et al., arXiv 2101.06983). The result does not depend on how rows are split,
packed, padded or placed. A loss that is linear in them knows its gradient beforehand and is not read.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from iiblpo_jax.common import masked
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import bind, cast, output_weights
from iiblpo_jax.model.divergence import Teacher
from iiblpo_jax.objectives.rows import Rows
from iiblpo_jax.offline.losses.interface import Loss, Read
from iiblpo_jax.offline.measures import diagnostics
from iiblpo_jax.update.epochs import optimizer_step
from iiblpo_jax.update.gradient import accumulate
from iiblpo_jax.update.measures import input_positions
from iiblpo_jax.update.microbatches import make_pieces
from iiblpo_jax.update.optimizer import Schedule
from iiblpo_jax.update.settings import UpdateSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaseGradient:
    """The static half of a step: what to compute, not on what. Every method is pure.

    Attributes:
      settings: pieces and dtype; `group_size` is G, the rows of a case.
      loss: of the cases.
      model_config: architecture of policy and reference.
      shardings: of the params, which their gradients share; None = where the compiler likes.
    """

    settings: UpdateSettings
    loss: Loss
    model_config: ModelConfig
    shardings: Any = None

    def read(self, params: dict, rows: Rows) -> jax.Array:
        """[R] log-prob of every row's response, piece by piece; constants."""
        return self._collect(params, make_pieces(rows, self.settings), None, rows)[0]

    def __call__(self, params: dict, reference: dict | None, rows: Rows):
        """(loss, gradients like params, totals: sums behind the metrics) of the cases of a step.

        `reference` are weights like params, of a loss that reads them.
        """
        pieces = make_pieces(rows, self.settings)
        contrasted = self._contrasted(reference, pieces)
        read = self._read(params, reference, contrasted, rows, pieces)

        def of_scores(scores):
            return self.loss(read.replace(logp_PG=scores[0], shift_PG=scores[1]))

        loss, slopes = jax.value_and_grad(of_scores)((read.logp_PG, read.shift_PG))
        slopes_RT = [slope_PG.reshape(-1, 1) * rows.mask_RT for slope_PG in slopes]

        def piece_loss(params, i):
            logp, entropy, *shift = pieces.log_probs(self._model(params), i, teacher=contrasted)
            slopes, mask = pieces.counted((pieces.cut(slopes_RT, i), pieces.rows(i).mask_RT), i)
            total = sum(masked.sum(slope * x, mask) for slope, x in zip(slopes, (logp, *shift), strict=False))
            return total, jax.lax.stop_gradient({"entropy": masked.sum(entropy, mask)})

        (linear, totals), gradients = accumulate(piece_loss, params, pieces.count, self.shardings)
        tokens = rows.mask_RT.sum()
        totals |= {"tokens": tokens, "ratio": tokens, "taught": tokens}  # it starts at pi_old: every ratio is 1
        totals |= {} if self.loss.linear else diagnostics(read, slopes[0] + slopes[1])
        return linear if self.loss.linear else loss, gradients, totals | input_positions(rows, pieces)

    def _read(self, params: dict, reference: dict | None, contrasted: Teacher | None, rows: Rows, pieces) -> Read:
        """What the loss reads; for a linear one log-probs of 0, where its gradient is that of anywhere."""
        tokens_R = rows.mask_RT.sum(1)
        found = [jnp.zeros_like(tokens_R)] * 2  # log-probs and shifts
        if not self.loss.linear:
            read = self._collect(params, pieces, contrasted, rows)
            found[: len(read)] = read
        reference_R = jnp.zeros_like(tokens_R)
        if self.loss.reference:
            assert reference is not None
            reference_R = self.read(reference, rows)
        return Read(*map(self._by_case, (tokens_R, *found, reference_R)))

    def _contrasted(self, reference: dict | None, pieces) -> Teacher | None:
        """The reference whose next-token distributions the loss goes by; None where it does not."""
        if self.loss.contrast is None:
            return None
        assert reference is not None
        model = self._model(reference)
        return Teacher((pieces.collect_states(model),), output_weights(model), contrast=self.loss.contrast)

    def _collect(self, params: dict, pieces, contrasted: Teacher | None, rows: Rows) -> list:
        """[R] sums over responses of log-probs, and of shifts with a reference of theirs; constants."""
        logp_RT, _, *shift_RT = pieces.collect_log_probs(self._model(params), teacher=contrasted)
        return [jax.lax.stop_gradient(masked.sum(x_RT, rows.mask_RT, axis=1)) for x_RT in (logp_RT, *shift_RT)]

    def _by_case(self, x_R: jax.Array) -> jax.Array:
        return x_R.reshape(-1, self.settings.group_size)

    def _model(self, params: dict):
        return bind(self.model_config, cast(params["policy"], self.settings.dtype))


def make_update(gradient: CaseGradient, optimizer, schedule: Schedule, *, state_shardings=None) -> Callable:
    """The jitted step: (TrainState, reference or None, Rows) -> (TrainState, metrics).

    The state is donated: do not use it again. `optimizer` is at the peak of its learning rate.
    """
    update = partial(_update, gradient, optimizer, schedule)
    return jax.jit(update, donate_argnums=0, out_shardings=(state_shardings, None))


def make_reader(gradient: CaseGradient) -> Callable:
    """The jitted `gradient.read`, on its mesh."""

    def read(params, rows):
        with meshes.using(gradient.settings.mesh):
            return meshes.whole(gradient.read(params, rows))

    return jax.jit(read)


def _update(gradient: CaseGradient, optimizer, schedule: Schedule, state, reference, rows: Rows):
    def of_rows(params, rows, old_logp_RT, *, step, key):
        del old_logp_RT, step, key
        return gradient(params, reference, rows)

    with meshes.using(gradient.settings.mesh):
        share, rate = schedule.share(state.moved), schedule.rate(state.moved)
        state, totals = optimizer_step(of_rows, optimizer, share, state, rows, None, None)
    moved = state.moved + (totals["moved"] > 0)
    return state.replace(step=state.step + 1, moved=moved), _metrics(totals) | {"optim/lr": rate}


def _metrics(totals: dict) -> dict:
    tokens, positions = (jnp.maximum(totals[name], 1.0) for name in ("tokens", "positions"))
    return {name: x for name, x in totals.items() if "/" in name} | {
        "update/loss": totals["loss"],
        "update/grad_norm": totals["grad_norm"],
        "update/entropy": totals["entropy"] / tokens,
        "update/skipped": totals["skipped"],
        "update/empty": totals["empty"],
        "update/packing_ratio": totals["inputs"] / positions,
        "update/tokens": totals["nodes"],
    }
