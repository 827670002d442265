"""What a policy-optimisation method is: a handful of plain functions of [R,T] arrays.

    Rows   --reward_shaping, advantage-->  A  (once a rollout)
    Batch  --token_mask--> aggregate --> weights          (once an optimizer step, on the whole minibatch)
    Batch  --advantage_transform, policy_loss, aux_loss--> per-token losses
    loss = sum(weights * losses)

The update computes gradients microbatch by microbatch. A method whose losses or token mask need the *current* log-probs
or entropies of other rows (a quantile, a covariance, a contrast within a group) says so with `whole_minibatch`: the
update then evaluates the loss once on the log-probs of the whole minibatch and back-propagates its exact gradient with
respect to them, so every method gives the same result however the minibatch is split.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from iiblpo_jax.common import masked
from iiblpo_jax.objectives.aggregate import AGGREGATES
from iiblpo_jax.objectives.distillation import Distillation
from iiblpo_jax.objectives.rows import Rows


class Batch(struct.PyTreeNode):
    """What a loss may read: rows, which are constants, and what the current policy says of them.

    Attributes:
      rows: R trajectories.
      logp_RT, entropy_RT: of the current policy at the sampling temperature; differentiable. None while weights are
        computed, unless the method asked for `whole_minibatch`.
      old_logp_RT: of the policy at the start of the update (constant); None where logp_RT is.
      importance_RT: pi_old / mu within bounds where another distribution than pi_old drew the token, else 1 (constant).
      step: int32 scalar, rollouts done so far.
      key: random key of the minibatch; None unless the method asked for `whole_minibatch`.
      top_logp_RTK: of the current policy, for the tokens that rows have as TOP_TOKEN (constant); None where logp_RT is,
        and without Objective.record.
      divergence_RT: of the current policy's distributions from the teacher's, in nats; differentiable. None where
        logp_RT is, and without Objective.distillation.
    """

    rows: Rows
    logp_RT: jax.Array
    entropy_RT: jax.Array
    old_logp_RT: jax.Array
    importance_RT: jax.Array
    step: jax.Array | None = None
    key: jax.Array | None = None
    top_logp_RTK: jax.Array | None = None
    divergence_RT: jax.Array | None = None


class TokenLoss(struct.PyTreeNode):
    """A policy loss before aggregation, and what its clipping did (the last three only feed metrics).

    Attributes:
      loss_RT: differentiable.
      ratio_RT: the probability ratio that was clipped.
      clip_low_RT, clip_high_RT: 1 where the ratio was cut from below (A < 0) or from above (A > 0).
    """

    loss_RT: jax.Array
    ratio_RT: jax.Array
    clip_low_RT: jax.Array
    clip_high_RT: jax.Array


def _same_reward(rows: Rows, step: jax.Array | None) -> jax.Array:
    return rows.reward_R


def _same_advantage(batch: Batch) -> jax.Array:
    return batch.rows.advantage_RT


def _every_token(batch: Batch) -> jax.Array:
    return batch.rows.mask_RT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """One method, as the functions it plugs into the stack. Hashable: a static argument of jitted programs.

    Attributes:
      name: registry name.
      advantage: Rows -> A_R or A_RT, over the kept rows of each prompt. A minibatch of which every counted token has 0
        is not learnt from, whatever else its loss holds (update/epochs.py).
      policy_loss: (Batch, A_RT) -> TokenLoss; A_RT is the transformed advantage. Multiplies by importance_RT itself.
      aggregate: name in aggregate.AGGREGATES: how per-token losses become one number.
      max_tokens: T, the constant of `seq-mean-token-sum-norm`; never read from an array's shape, which padding changes.
      reward_shaping: (Rows, step) -> reward_R, before the advantage; step = rollouts done so far, for a schedule.
      bonus: (Rows, step) -> [R], added to the advantages after the group's normalisation; None = none.
      advantage_transform: Batch -> A_RT; may read entropies and log-probs, detached.
      token_mask: Batch -> {0,1}_RT within mask_RT; also enters the denominator of the aggregate.
      aux_losses: each Batch -> loss_RT, added to the policy loss under the same weights.
      group_loss: Batch -> scalar loss of whole groups, in place of policy_loss and aggregate (DisCO, DPO variants);
        policy_loss then only feeds the ratio and clip metrics.
      needs_groups: minibatches hold whole groups.
      whole_minibatch: losses or masks couple rows through current log-probs or entropies, or draw random numbers.
      distillation: a teacher's term, added to the loss under weights of its own; None = no teacher.
      needs: names of rows.ON_REQUEST: what rows hold besides, because the method reads it.
      record: K likeliest tokens of every draw that the rollout notes (rows.TOP_*), for Batch.top_logp_RTK; 0 = none.
    """

    name: str
    advantage: Callable[[Rows], jax.Array]
    policy_loss: Callable[[Batch, jax.Array], TokenLoss]
    aggregate: str
    max_tokens: int
    reward_shaping: Callable[[Rows, jax.Array | None], jax.Array] = _same_reward
    bonus: Callable[[Rows, jax.Array | None], jax.Array] | None = None
    advantage_transform: Callable[[Batch], jax.Array] = _same_advantage
    token_mask: Callable[[Batch], jax.Array] = _every_token
    aux_losses: tuple[Callable[[Batch], jax.Array], ...] = ()
    group_loss: Callable[[Batch], jax.Array] | None = None
    needs_groups: bool = False
    whole_minibatch: bool = False
    distillation: Distillation | None = None
    needs: tuple[str, ...] = ()
    record: int = 0

    def weights(self, batch: Batch) -> jax.Array:
        """[R,T] weight of every token's loss, normalised over the whole of `batch` (pass the whole minibatch)."""
        return AGGREGATES[self.aggregate](self.token_mask(batch), max_tokens=self.max_tokens)

    @property
    def coupled(self) -> bool:
        """The loss of a row depends on what the current policy says of others."""
        return self.whole_minibatch or self.group_loss is not None

    def distilled(self, rows: Rows) -> jax.Array | None:
        """[R,T] weight of every token's divergence from the teacher, over the whole minibatch; None without one."""
        return None if self.distillation is None else self.distillation.weights(rows)

    def loss(
        self, batch: Batch, weights_RT: jax.Array, distilled_RT: jax.Array | None = None
    ) -> tuple[jax.Array, TokenLoss]:
        """(sum over tokens of weight * loss, per-token details) of some rows of the minibatch the weights are from."""
        token = self.policy_loss(batch, self.advantage_transform(batch))
        if self.group_loss is None:
            total = masked.sum(weights_RT * token.loss_RT, weights_RT)
        else:
            total = self.group_loss(batch)
        for aux in self.aux_losses:
            total += masked.sum(weights_RT * aux(batch), weights_RT)
        if self.distillation is not None and distilled_RT is not None:
            assert batch.divergence_RT is not None, "the update reads rows with their teacher"
            total += masked.sum(distilled_RT * batch.divergence_RT, distilled_RT)
        return total, token


def advantages(
    objective: Objective, rows: Rows, *, reward_coef: float = 0.0, step: jax.Array | None = None
) -> jax.Array:
    """Advantages of a rollout: shaped rewards, the method's group normalisation, and the bottleneck's self-reward.

    The self-reward reward_coef * clip(S_IB, -1, 1) is added *after* normalisation and only in groups whose kept rewards
    differ: added before, a group without spread turns score noise into full-size advantages.

    Args:
      objective: the method.
      rows: the kept rows alone, or all rows with keep_R.
      reward_coef: weight of S_IB; 0 = off.
      step: rollouts done so far.

    Returns:
      [R], or [R,T] where the method's advantage differs between tokens; 0 on rows that are not kept.
    """
    rows = rows.replace(reward_R=objective.reward_shaping(rows, step))
    a = objective.advantage(rows)
    per_row = (...,) + (None,) * (a.ndim - 1)
    if reward_coef:
        spread_R = masked.group_spread(rows.reward_R, rows.group_R, rows.keep_R) > 0
        a += jnp.where(spread_R, reward_coef * jnp.clip(rows.ib_score_R, -1.0, 1.0), 0.0)[per_row]
    if objective.bonus is not None:
        a += objective.bonus(rows, step)[per_row]
    return jnp.where(rows.keep_R[per_row] != 0, a, 0.0)
