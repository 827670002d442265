"""BAPO (Xi et al., arXiv 2510.18927): clip bounds that give right answers their share of the loss.

For every minibatch the bounds (low, high) start at (.6, 1.2) and widen until positive tokens carry at least `target` of
the surrogate, or the lower bound has reached .9:

    share = P / (P + N),   P = sum_{A > 0} mu * min(r, high) * A,   N = sum_{A < 0} mu * max(r, low) * |A|
    while share < target and low + .02 <= .9:
        high += .05 where it stays within 3.0, else low += .02
    loss = mean over tokens of max(-A r, -A clip(r, low, high)),   r = pi / pi_old,   mu the policy that sampled

Ours: the share of absolute values. The paper's denominator is |P - N|, which is near 0 for advantages that are centred
in their group, whatever the bounds. A while_loop over two scalars; on a mesh the sums are global.
With one optimizer step a rollout r is 1 throughout and the bounds change nothing.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from iiblpo_jax.common import masked
from iiblpo_jax.objectives.clipping import clipped_surrogate, ratio
from iiblpo_jax.objectives.grpo import grpo
from iiblpo_jax.objectives.interface import Batch, Objective, TokenLoss


def bapo(
    *,
    max_tokens: int,
    aggregate="token-mean",
    target=0.4,
    low=0.6,
    low_max=0.9,
    low_step=0.02,
    high=1.2,
    high_max=3.0,
    high_step=0.05,
) -> Objective:
    bounds = partial(
        clip_bounds,
        target=target,
        low=(low, low_max, low_step),
        high=(high, high_max, high_step),
    )
    base = grpo(max_tokens=max_tokens, aggregate=aggregate)
    return dataclasses.replace(base, name="bapo", policy_loss=partial(bapo_loss, bounds=bounds), whole_minibatch=True)


def bapo_loss(batch: Batch, a_RT, *, bounds) -> TokenLoss:
    """PPO-clip between the bounds of this minibatch."""
    low, high = bounds(batch, a_RT)
    return clipped_surrogate(batch, a_RT, ratio(batch), clip_low=1.0 - low, clip_high=high - 1.0)


def clip_bounds(batch: Batch, a_RT, *, target: float, low: tuple, high: tuple) -> tuple[jax.Array, jax.Array]:
    """(low, high), float32 scalars, of the module's loop; `low` and `high` are (start, end, step)."""
    mask_RT, ratio_RT = batch.rows.mask_RT, jax.lax.stop_gradient(ratio(batch))
    gain_RT = jnp.exp(batch.rows.raw_logp_RT) * jnp.abs(a_RT)

    def at(steps):  # bounds are counted in steps: added up in float32 they would drift
        return low[0] + steps[0] * low[2], high[0] + steps[1] * high[2]

    def share(steps):
        lower, upper = at(steps)
        positive = masked.sum(gain_RT * jnp.minimum(ratio_RT, upper), mask_RT * (a_RT > 0))
        negative = masked.sum(gain_RT * jnp.maximum(ratio_RT, lower), mask_RT * (a_RT < 0))
        return positive / jnp.maximum(positive + negative, jnp.finfo(jnp.float32).tiny)

    most = tuple(int((end - start) / step + 1e-6) for start, end, step in (low, high))

    def wider(steps):
        rises = steps[1] < most[1]
        return jnp.where(rises, steps[0], steps[0] + 1), jnp.where(rises, steps[1] + 1, steps[1])

    def wanted(steps):
        return (share(steps) < target) & (steps[0] < most[0])

    return at(jax.lax.while_loop(wanted, wider, (jnp.int32(0), jnp.int32(0))))
