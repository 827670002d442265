"""Loss and gradient of one minibatch, piece by piece (pieces.py)."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from iiblpo_jax.common import masked
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import bind, cast
from iiblpo_jax.model.steering.psa import bind_psa
from iiblpo_jax.objectives.auxiliary import k3
from iiblpo_jax.objectives.interface import Batch, Objective, TokenLoss
from iiblpo_jax.update.measures import add_up, input_positions, z_was_on
from iiblpo_jax.update.microbatches import make_pieces
from iiblpo_jax.update.rows import UpdateRows
from iiblpo_jax.update.settings import UpdateSettings


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinibatchGradient:
    """The static half of an optimizer step: what to compute, not on what. Every method is pure.

    Attributes:
      settings: pieces, condition, weights.
      objective: the method, auxiliary terms included.
      model_config: architecture of params['policy'].
      shardings: of the params, which their gradients share; None = where the compiler likes.
    """

    settings: UpdateSettings
    objective: Objective
    model_config: ModelConfig
    shardings: Any = None

    def __call__(self, params: dict, rows: UpdateRows, old_logp_NT, *, step, key):
        """Loss, gradient and the sums behind the metrics.

        Args:
          params: {'policy': ..., 'psa': ...}.
          rows: the whole minibatch; mask_NT already is the loss mask.
          old_logp_NT: log-probs of pi_old, or None where the policy still is pi_old (the ratio is then exactly 1).
          step: int32 scalar handed to the objective.
          key: random key handed to the objective.

        Returns:
          (loss, gradients like params, totals: see `_totals`).
        """
        pieces = make_pieces(rows, self.settings)
        coupled = self.objective.whole_minibatch or self.objective.group_loss is not None
        if coupled and not pieces.one:
            return self._coupled(params, rows, pieces, old_logp_NT, step=step, key=key)
        # A method that couples rows gets its weights, and its random key, only with the whole minibatch in hand.
        weights_NT = None if coupled else self.objective.weights(self._batch(rows, None, None, old_logp_NT, step=step))

        def piece_loss(params, i):
            rows, (old_logp, weights) = pieces.rows(i), pieces.cut((old_logp_NT, weights_NT), i)
            batch = self._batch(
                rows, *self._forward(params, pieces, i), old_logp, step=step, key=key if coupled else None
            )
            weights = self.objective.weights(batch) if coupled else pieces.counted(weights, i)
            loss, token = self.objective.loss(batch, weights)
            return loss, self._totals(rows, batch, token)

        (loss, totals), gradients = self._accumulate(piece_loss, params, pieces)
        return loss, gradients, totals | input_positions(rows, pieces)

    def _coupled(self, params, rows, pieces, old_logp_NT, *, step, key):
        # Gradient caching (Gao et al., arXiv 2101.06983): the loss and its gradient with respect to the log-probs need
        # all rows but no activations; the chain rule through the model then goes one piece at a time.
        def whole_loss(logp, entropy):
            batch = self._batch(rows, logp, entropy, old_logp_NT, step=step, key=key)
            loss, token = self.objective.loss(batch, self.objective.weights(batch))
            return loss, self._totals(rows, batch, token)

        outer = jax.value_and_grad(whole_loss, argnums=(0, 1), has_aux=True)
        (loss, totals), cotangents = outer(*self._collect(params, pieces))

        def piece_loss(params, i):
            d_logp, d_entropy = pieces.counted(pieces.cut(cotangents, i), i)
            logp, entropy = self._forward(params, pieces, i)
            return jnp.sum(d_logp * logp + d_entropy * entropy), {}

        _, gradients = self._accumulate(piece_loss, params, pieces)
        return loss, gradients, totals | input_positions(rows, pieces)

    def log_probs(self, params, rows: UpdateRows):
        """(logp_NT, entropy_NT) of the response tokens of any number of rows, piece by piece; constants.

        z is injected if `conditioned`.
        """
        return self._collect(params, make_pieces(rows, self.settings))

    def _collect(self, params, pieces):
        return jax.lax.stop_gradient(pieces.collect_log_probs(**self._forward_arguments(params, pieces)))

    def _forward(self, params, pieces, i):
        """(logp, entropy) [rows, T] of piece i."""
        return pieces.log_probs(i=i, **self._forward_arguments(params, pieces))

    def _forward_arguments(self, params, pieces):
        inject = self.settings.condition == "conditioned" and pieces.latent
        model = bind(self.model_config, cast(params["policy"], self.settings.dtype))
        return {"model": model, "psa": bind_psa(params["psa"], self.model_config) if inject else None}

    def _batch(self, rows: UpdateRows, logp, entropy, old_logp, *, step, key=None) -> Batch:
        old_logp = jax.lax.stop_gradient(logp) if old_logp is None else old_logp
        z_on = z_was_on(rows)
        advantage = rows.advantage_N if rows.advantage_N.ndim == 2 else rows.advantage_N[:, None]
        return Batch(
            logp_RT=logp,
            entropy_RT=entropy,
            old_logp_RT=old_logp,
            rollout_logp_RT=rows.rollout_logp_NT,
            ref_logp_RT=rows.ref_logp_NT,
            mask_RT=rows.mask_NT.astype(jnp.float32),
            own_mask_RT=rows.own_mask_NT.astype(jnp.float32),
            z_on_RT=z_on,
            importance_RT=self._importance(old_logp, rows, z_on),
            advantage_RT=jnp.broadcast_to(advantage, rows.mask_NT.shape),
            reward_R=rows.reward_N,
            correct_R=rows.correct_N,
            ib_score_R=rows.ib_score_N,
            group_R=rows.group_N,
            length_R=rows.length_N,
            trajectory_R=rows.trajectory_N,
            parent_R=rows.parent_N,
            branch_at_R=rows.branch_at_N,
            step=step,
            key=key,
            extras=rows.extras,
        )

    def _importance(self, old_logp, rows: UpdateRows, z_on):
        s, ones = self.settings, jnp.ones_like(rows.rollout_logp_NT)
        if not s.importance_cap or old_logp is None:
            return ones
        # Rounded weights change the probability of every token; truncation is not among what is corrected.
        weight = ones if s.exact_rollout else truncated_ratio(old_logp, rows.raw_logp_NT, cap=s.importance_cap)
        if s.condition == "conditioned":
            return weight
        return jnp.where(z_on > 0, truncated_ratio(old_logp, rows.rollout_logp_NT, cap=s.importance_cap), weight)

    def _totals(self, rows: UpdateRows, batch: Batch, token: TokenLoss) -> dict:
        """Sums over tokens, and a maximum (`*_max`): what `metrics` needs, in a form that microbatches can add up."""
        mask, on = batch.mask_RT, batch.mask_RT * batch.z_on_RT
        weighed = on if self.settings.exact_rollout else mask
        # Without z in the update, tokens sampled with z differ by design, not by mistake.
        comparable = mask if self.settings.condition == "conditioned" else mask - on
        gap = jnp.abs(rows.raw_logp_NT - batch.old_logp_RT)
        kl = jnp.zeros_like(mask) if batch.ref_logp_RT is None else k3(batch.logp_RT, batch.ref_logp_RT)
        totals = {
            "tokens": mask.sum(),
            "ratio": masked.sum(token.ratio_RT, mask),
            "clip_low": masked.sum(token.clip_low_RT, mask),
            "clip_high": masked.sum(token.clip_high_RT, mask),
            "kl_ref": masked.sum(kl, mask),
            "entropy": masked.sum(batch.entropy_RT, mask),
            "weight": masked.sum(batch.importance_RT, weighed),
            "weight_square": masked.sum(jnp.square(batch.importance_RT), weighed),
            "weight_tokens": weighed.sum(),
            "gap": masked.sum(gap, comparable),
            "gap_tokens": comparable.sum(),
            "gap_max": masked.max(gap, comparable),
        }
        return jax.lax.stop_gradient(totals)

    def _accumulate(self, piece_loss, params, pieces):
        """((loss, totals), gradients) added up over the pieces."""
        value_and_grad = jax.value_and_grad(piece_loss, has_aux=True)

        def gradient(params, i):
            value, gradients = value_and_grad(params, i)
            if self.shardings is not None:  # else every device might hold all of them
                gradients = jax.lax.with_sharding_constraint(gradients, self.shardings)
            return value, gradients

        shapes = jax.eval_shape(gradient, params, jnp.int32(0))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.fori_loop(0, pieces.count, lambda i, total: add_up(total, gradient(params, i)), zeros)


def truncated_ratio(old_logp_NT, behaviour_logp_NT, *, cap: float):
    """min(pi_old / mu, cap) of every token. Per token: over whole sequences few rows would have all the mass."""
    # Bounded before exp, which could overflow.
    return jnp.exp(jnp.minimum(old_logp_NT - behaviour_logp_NT, math.log(cap)))
