"""Next-token sampling: temperature, then top-k, top-p, min-p, as in Hugging Face's order of warpers."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

CDF_BLOCK = 128  # the inverse-CDF search looks at V/128 block sums, then inside one block


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is drawn from logits.

    Attributes:
      temperature: divides the logits; 0 = greedy.
      top_k: keep the k likeliest tokens; 0 = all.
      top_p: keep the smallest set of likeliest tokens that holds this probability; 1 = all.
      min_p: drop tokens below this fraction of the likeliest one's probability; 0 = none.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


@struct.dataclass
class Draw:
    """One sampled token a slot: id, behaviour and temperature-only log-probs (nats), entropy before truncation."""

    token_B: jax.Array
    logp_B: jax.Array
    raw_logp_B: jax.Array
    entropy_B: jax.Array


def sample(logits_BV: jax.Array, keys_B: jax.Array, sampling: Sampling, forbidden_BV: jax.Array | None = None) -> Draw:
    """Draws one token a row.

    Args:
      logits_BV: float32.
      keys_B: one key a row, so that a draw does not depend on its neighbours.
      sampling: static. At temperature 0 the entropy and the raw log-prob are those of temperature 1, and the behaviour
        log-prob is 0 (the token was certain).
      forbidden_BV: tokens that may not be drawn (min_tokens); it counts as truncation.
    """
    greedy = sampling.temperature == 0
    scaled_BV = logits_BV if greedy else logits_BV / sampling.temperature
    raw_BV = jax.nn.log_softmax(scaled_BV)
    p_BV = jnp.exp(raw_BV)
    entropy_B = -jnp.sum(p_BV * raw_BV, axis=-1)
    q_BV = p_BV if forbidden_BV is None else jnp.where(forbidden_BV, 0.0, p_BV)
    q_BV = _truncate(q_BV, sampling)
    token_B = q_BV.argmax(-1) if greedy else _inverse_cdf(q_BV, jax.vmap(jax.random.uniform)(keys_B))
    pick = lambda x_BV: jnp.take_along_axis(x_BV, token_B[:, None], axis=1)[:, 0]  # noqa: E731
    logp_B = jnp.zeros_like(entropy_B) if greedy else pick(raw_BV) - jnp.log(q_BV.sum(-1))
    return Draw(token_B=token_B, logp_B=logp_B, raw_logp_B=pick(raw_BV), entropy_B=entropy_B)


def _truncate(p_BV: jax.Array, s: Sampling) -> jax.Array:
    """Zeroes what top-k, top-p and min-p cut off; each looks at what the one before left, renormalised."""
    if 0 < s.top_k < p_BV.shape[1]:
        p_BV = _keep_at_least(p_BV, jax.lax.top_k(p_BV, s.top_k)[0][:, -1])
    if s.top_p < 1:
        ordered = -jnp.sort(-p_BV, axis=-1)
        before = jnp.cumsum(ordered, axis=-1) - ordered
        inside = before < s.top_p * p_BV.sum(-1, keepdims=True)
        p_BV = _keep_at_least(p_BV, jnp.where(inside, ordered, jnp.inf).min(-1))
    if s.min_p > 0:
        p_BV = _keep_at_least(p_BV, s.min_p * p_BV.max(-1))
    return p_BV


def _keep_at_least(p_BV: jax.Array, threshold_B: jax.Array) -> jax.Array:
    return jnp.where(p_BV >= threshold_B[:, None], p_BV, 0.0)


def _inverse_cdf(p_BV: jax.Array, u_B: jax.Array) -> jax.Array:
    """First token whose cumulative probability exceeds u * total: one random number a token instead of V of them."""
    b, v = p_BV.shape
    p_BNC = jnp.pad(p_BV, [(0, 0), (0, -v % CDF_BLOCK)]).reshape(b, -1, CDF_BLOCK)
    blocks_BN = p_BNC.sum(-1)
    upto_BN = jnp.cumsum(blocks_BN, axis=-1)
    target_B = u_B * upto_BN[:, -1]
    block_B = jnp.argmax(upto_BN > target_B[:, None], axis=-1)
    rows = jnp.arange(b)
    inside_BC = p_BNC[rows, block_B]
    rest_B = target_B - (upto_BN[rows, block_B] - blocks_BN[rows, block_B])
    above_BC = (jnp.cumsum(inside_BC, axis=-1) > rest_B[:, None]) & (inside_BC > 0)
    # Rounding may leave the rest just above the block's own sum: then its likeliest token is taken, never a zero one.
    offset_B = jnp.where(above_BC.any(-1), above_BC.argmax(-1), inside_BC.argmax(-1))
    return (block_B * CDF_BLOCK + offset_B).astype(jnp.int32)
