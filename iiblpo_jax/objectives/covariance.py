"""Clip-Cov and KL-Cov (Cui et al., arXiv 2505.22617): hold back the few tokens that collapse entropy.

Entropy falls by the covariance of log-prob and advantage. Over the N tokens of a minibatch,

    cov_t = (A_t - mean A) (log pi_t - mean log pi)

Clip-Cov: PPO-clip, and of the tokens with lb < cov < ub that it did not clip already, a random share * N (at least one)
lose their gradient; they stay in the denominator.
KL-Cov: no clip; the share * N (at least one) tokens of the largest cov pay kl_coef * |log pi - log pi_old| on top.

Shares are those published for a 7B model, the 32B one has 2e-4 for both.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from iiblpo_jax.common import masked
from iiblpo_jax.objectives.clipping import MAX_LOG_RATIO, ppo_loss, ratio, unclipped
from iiblpo_jax.objectives.grpo import grpo
from iiblpo_jax.objectives.interface import Batch, Objective, TokenLoss


def clip_cov(
    *, max_tokens: int, clip_low=0.2, clip_high=0.2, aggregate="token-mean", share=2e-4, cov_low=1.0, cov_high=5.0
) -> Objective:
    base = grpo(max_tokens=max_tokens, aggregate=aggregate)
    loss = partial(
        clip_cov_loss, clip_low=clip_low, clip_high=clip_high, share=share, cov_low=cov_low, cov_high=cov_high
    )
    return dataclasses.replace(base, name="clip_cov", policy_loss=loss, whole_minibatch=True)


def kl_cov(*, max_tokens: int, aggregate="token-mean", share=2e-3, kl_coef=1.0) -> Objective:
    base = grpo(max_tokens=max_tokens, aggregate=aggregate)
    loss = partial(kl_cov_loss, share=share, kl_coef=kl_coef)
    return dataclasses.replace(base, name="kl_cov", policy_loss=loss, whole_minibatch=True)


def clip_cov_loss(
    batch: Batch, a_RT, *, clip_low: float, clip_high: float, share: float, cov_low: float, cov_high: float
) -> TokenLoss:
    """PPO-clip without the chosen tokens; they count as clipped from above."""
    token = ppo_loss(batch, a_RT, clip_low=clip_low, clip_high=clip_high)
    cov_RT, mask_RT = covariance(batch, a_RT), batch.rows.mask_RT
    clipped_RT = (token.clip_low_RT > 0) | (token.clip_high_RT > 0)
    open_RT = (mask_RT > 0) & (cov_RT > cov_low) & (cov_RT < cov_high) & ~clipped_RT
    chosen_RT = largest(token_uniforms(batch), open_RT, at_least_one(share, mask_RT))
    return token.replace(
        loss_RT=jnp.where(chosen_RT, 0.0, token.loss_RT), clip_high_RT=jnp.where(chosen_RT, 1.0, token.clip_high_RT)
    )


def kl_cov_loss(batch: Batch, a_RT, *, share: float, kl_coef: float) -> TokenLoss:
    """-A r, and kl_coef |log pi - log pi_old| on the chosen tokens, both times the importance weight."""
    mask_RT, ratio_RT = batch.rows.mask_RT, ratio(batch)
    chosen_RT = largest(covariance(batch, a_RT), mask_RT > 0, at_least_one(share, mask_RT))
    moved_RT = jnp.abs(jnp.clip(batch.logp_RT - batch.old_logp_RT, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    loss_RT = -a_RT * ratio_RT + jnp.where(chosen_RT, kl_coef * moved_RT, 0.0)
    return unclipped(batch.importance_RT * loss_RT, ratio_RT)


def covariance(batch: Batch, a_RT) -> jax.Array:
    """cov_t [R,T], constant; means over the tokens that count."""
    mask_RT, logp_RT = batch.rows.mask_RT, jax.lax.stop_gradient(batch.logp_RT)
    return (a_RT - masked.mean(a_RT, mask_RT)) * (logp_RT - masked.mean(logp_RT, mask_RT))


def at_least_one(share: float, mask_RT) -> jax.Array:
    """max(1, floor(share * N)) of the N tokens that count, int32."""
    return jnp.maximum(1, jnp.floor(share * mask_RT.sum()).astype(jnp.int32))


def largest(x_RT, among_RT, count) -> jax.Array:
    """bool [R,T]: the `count` largest entries of those `among_RT` (all of them where they are fewer)."""
    flat = jnp.where(among_RT, x_RT, -jnp.inf).ravel()
    # The rank of every entry; equal ones by position, so that exactly `count` are chosen.
    rank = jnp.zeros(flat.shape, jnp.int32).at[jnp.argsort(flat, descending=True)].set(jnp.arange(flat.size))
    return (rank < count).reshape(x_RT.shape) & among_RT


def token_uniforms(batch: Batch) -> jax.Array:
    """[R,T] uniform numbers that belong to a trajectory's token, whatever the padding and the order of rows."""
    batch_key = batch.key
    assert batch_key is not None, "whole_minibatch makes the update hand out a key"

    def of_row(trajectory):
        key = jax.random.fold_in(batch_key, trajectory)
        return jax.vmap(lambda t: jax.random.uniform(jax.random.fold_in(key, t)))(jnp.arange(batch.rows.t))

    return jax.vmap(of_row)(batch.rows.trajectory_R)
