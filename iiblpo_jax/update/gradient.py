"""Loss and gradient of one minibatch, piece by piece (microbatches.py)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from iiblpo_jax.model.adapters.adapted import Adapted, bound, policy_of
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import output_weights
from iiblpo_jax.model.divergence import Teacher, over_vocabulary
from iiblpo_jax.model.steering.psa import bind_psa
from iiblpo_jax.objectives.interface import Batch, Objective
from iiblpo_jax.objectives.rows import Rows
from iiblpo_jax.update.importance import importance
from iiblpo_jax.update.measures import add_up, input_positions, totals_of
from iiblpo_jax.update.microbatches import make_pieces
from iiblpo_jax.update.settings import UpdateSettings
from iiblpo_jax.update.state import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinibatchGradient:
    """The static half of an optimizer step: what to compute, not on what. Every method is pure.

    Attributes:
      settings: pieces, condition, weights.
      objective: the method, auxiliary terms included.
      model_config: architecture of params['policy'].
      shardings: of the params, which their gradients share; None = where the compiler likes.
      base: what params['lora'] is an adapter of, while a program is traced (`over`); None = params['policy'] is whole.
    """

    settings: UpdateSettings
    objective: Objective
    model_config: ModelConfig
    shardings: Any = None
    base: Adapted | None = None

    def over(self, base: Adapted | None) -> "MinibatchGradient":
        """The same over a frozen base, an argument of the program that is being traced."""
        return dataclasses.replace(self, base=base)

    def sized_for(self, n: int) -> "MinibatchGradient":
        """The same with `update.microbatch = 0` filled in for n padded rows: a minibatch, however many are read."""
        s = self.settings
        if s.pack_tokens or s.microbatch:
            return self
        return dataclasses.replace(self, settings=dataclasses.replace(s, microbatch=n // s.minibatches))

    def __call__(self, params: dict, rows: Rows, old_logp_RT, *, step, key, teacher_VD=None):
        """Loss, gradient and the sums behind the metrics.

        Args:
          params: {'policy': ..., 'psa': ...}, or with 'lora' in place of 'policy'.
          rows: the whole minibatch; mask_RT already is the loss mask.
          old_logp_RT: log-probs of pi_old, or None where the policy still is pi_old (the ratio is then exactly 1).
          step: int32 scalar handed to the objective.
          key: random key handed to the objective.
          teacher_VD: output weights of the teacher where its whole distributions are distilled.

        Returns:
          (loss, gradients like params, totals: see `measures.totals_of`).
        """
        pieces = make_pieces(rows, self.settings)
        teacher, coupled = self._teacher(rows, teacher_VD), self.objective.coupled
        if coupled and not pieces.one:
            return self._coupled(params, rows, pieces, old_logp_RT, teacher, step=step, key=key)
        # A method that couples rows gets its weights, and its random key, only with the whole minibatch in hand.
        weights_RT = None if coupled else self.objective.weights(self._batch(rows, None, old_logp_RT, step=step))
        distilled_RT = self.objective.distilled(rows)

        def piece_loss(params, i):
            rows, (old_logp, *weights) = pieces.rows(i), pieces.cut((old_logp_RT, weights_RT, distilled_RT), i)
            said = self._forward(params, pieces, i, teacher=teacher, others=self.objective.record > 0)
            batch = self._batch(rows, said, old_logp, step=step, key=key if coupled else None)
            weights, distilled = pieces.counted(weights, i)
            weights = self.objective.weights(batch) if coupled else weights
            loss, token = self.objective.loss(batch, weights, distilled)
            return loss, totals_of(batch, token, self.settings, self.objective.distillation)

        (loss, totals), gradients = self._accumulate(piece_loss, params, pieces)
        return loss, gradients, self._completed(totals, gradients, rows, pieces)

    def _coupled(self, params, rows, pieces, old_logp_RT, teacher, *, step, key):
        # Gradient caching (Gao et al., arXiv 2101.06983): the loss and its gradient with respect to the log-probs need
        # all rows but no activations; the chain rule through the model then goes one piece at a time.
        def whole_loss(said):
            batch = self._batch(rows, (*said, *top), old_logp_RT, step=step, key=key)
            loss, token = self.objective.loss(batch, self.objective.weights(batch), self.objective.distilled(rows))
            return loss, totals_of(batch, token, self.settings, self.objective.distillation)

        now = self._collect(params, pieces, teacher=teacher, others=self.objective.record > 0)
        said, top = (now[:2], now[2:]) if teacher is None else (now[:3], now[3:])
        (loss, totals), cotangents = jax.value_and_grad(whole_loss, has_aux=True)(said)

        def piece_loss(params, i):
            d_said = pieces.counted(pieces.cut(cotangents, i), i)
            said = self._forward(params, pieces, i, teacher=teacher)
            return jnp.sum(sum(d * x for d, x in zip(d_said, said, strict=True))), {}

        _, gradients = self._accumulate(piece_loss, params, pieces)
        return loss, gradients, self._completed(totals, gradients, rows, pieces)

    def _completed(self, totals: dict, gradients, rows: Rows, pieces) -> dict:
        """The totals of tokens with those of rows. A loss of whole groups reads no advantages: its gradient tells."""
        if self.objective.group_loss is not None:
            totals |= {"taught": (optax.tree.norm(gradients) > 0).astype(jnp.float32)}
        return totals | input_positions(rows, pieces)

    def teacher_weights(self, state: TrainState, given):
        """Output weights of the teacher at the start of an update, before it moves; `given` are another model's."""
        term = self.objective.distillation
        if term is None or term.top_k:
            return None
        if term.teacher == "model":
            return over_vocabulary(given, self.model_config.vocab_size)
        weights = state.average if term.teacher == "average" else state.params
        assert weights is not None, "teacher.kind = average makes the state hold one"
        return output_weights(bound(self.model_config, policy_of(weights, self.base), self.settings.dtype))

    def log_probs(self, params, rows: Rows, *, others: bool = False):
        """(logp_RT, entropy_RT) of the response tokens of any number of rows, piece by piece; constants.

        z is injected if `conditioned`; with `others` and those [R,T,K] of the tokens that rows have as TOP_TOKEN.
        """
        return self._collect(params, make_pieces(rows, self.settings), others=others)

    def _teacher(self, rows: Rows, teacher_VD) -> Teacher | None:
        """What the teacher says of the rows; None without one."""
        term = self.objective.distillation
        if term is None:
            return None
        return Teacher(tuple(rows.extras[name] for name in term.columns), teacher_VD, term.beta)

    def _collect(self, params, pieces, *, teacher=None, others=False):
        found = pieces.collect_log_probs(teacher=teacher, others=others, **self._forward_arguments(params, pieces))
        return jax.lax.stop_gradient(found)

    def _forward(self, params, pieces, i, *, teacher=None, others=False):
        """(logp, entropy) [rows, T] of piece i; with a teacher and the divergence from it; with `others` and log-probs
        [rows, T, K] of TOP_TOKEN."""
        return pieces.log_probs(i=i, teacher=teacher, others=others, **self._forward_arguments(params, pieces))

    def _forward_arguments(self, params, pieces):
        inject = self.settings.condition == "conditioned" and pieces.latent
        model = bound(self.model_config, policy_of(params, self.base), self.settings.dtype)
        return {"model": model, "psa": bind_psa(params["psa"], self.model_config) if inject else None}

    def _batch(self, rows: Rows, said, old_logp: Any, *, step, key=None) -> Batch:
        """Rows with what `_forward` said of them; None while weights are computed."""
        logp: Any
        entropy: Any
        logp, entropy, *more = said or (None, None)
        divergence = more.pop(0) if more and self.objective.distillation is not None else None
        old_logp = jax.lax.stop_gradient(logp) if old_logp is None else old_logp
        ones = jnp.ones_like(rows.mask_RT)
        return Batch(
            rows=rows,
            logp_RT=logp,
            entropy_RT=entropy,
            old_logp_RT=old_logp,
            importance_RT=ones if old_logp is None else importance(rows, old_logp, self.settings),
            step=step,
            key=key,
            top_logp_RTK=more[0] if more else None,
            divergence_RT=divergence,
        )

    def _accumulate(self, piece_loss, params, pieces):
        return accumulate(piece_loss, params, pieces.count, self.shardings)


def accumulate(piece_loss, params, count, shardings):
    """((loss, totals), gradients) of piece_loss(params, i), added up over `count` pieces.

    `shardings` are those of the params, which their gradients share; None = where the compiler likes.
    """
    value_and_grad = jax.value_and_grad(piece_loss, has_aux=True)

    def gradient(params, i):
        value, gradients = value_and_grad(params, i)
        if shardings is not None:  # else every device might hold all of them
            gradients = jax.lax.with_sharding_constraint(gradients, shardings)
        return value, gradients

    shapes = jax.eval_shape(gradient, params, jnp.int32(0))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.fori_loop(0, count, lambda i, total: add_up(total, gradient(params, i)), zeros)
