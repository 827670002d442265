"""Grouped-query attention with an optional pseudo position, and rotary embeddings.

One softmax serves the full forward and decoding. The pseudo position of pseudo self-attention (psa.py) enters as extra
terms of the numerator and denominator rather than as a concatenated key, so keys and values are never copied and a
query whose pseudo position is switched off gets bit for bit what plain attention gives.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from iiblpo_jax.model.config import Llama3Rope, ModelConfig

OFF = -1e30  # log-weight of a key that must not be seen; exp(OFF - anything) is exactly 0 in float32
QUERY_BLOCK = 512  # queries scored at once in a full forward: bounds the [heads, block, keys] scores


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Pseudo:
    """Pseudo positions of one layer.

    Attributes:
      k_BJGE: pseudo keys, no rope.
      v_BJGE: pseudo values.
      bias_BTJ: log gamma where query t uses pseudo position j, OFF elsewhere.
    """

    k_BJGE: jax.Array
    v_BJGE: jax.Array
    bias_BTJ: jax.Array


def rope_frequencies(config: ModelConfig) -> np.ndarray:
    """Angular frequencies [E/2] in radians a position, with Llama 3 scaling where the model has it."""
    inv = 1.0 / config.rope_theta ** (np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
    scaling = config.rope_scaling
    return (inv if scaling is None else _llama3(inv, scaling)).astype(np.float32)


def _llama3(inv: np.ndarray, s: Llama3Rope) -> np.ndarray:
    turns = s.original_max_positions * inv / (2 * np.pi)
    smooth = np.clip((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0.0, 1.0)
    return inv * ((1 - smooth) / s.factor + smooth)


def rope(x_BTHE: jax.Array, positions_BT: jax.Array, frequencies: np.ndarray) -> jax.Array:
    """Rotates pairs (i, i + E/2) of every head by position * frequency_i (the Hugging Face half-rotation layout)."""
    return rotate(x_BTHE, rope_table(positions_BT, frequencies))


def rope_table(positions: jax.Array, frequencies: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """(cos, sin) [..., 1, E/2] of positions [...]; the same for every layer."""
    angle = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angle), jnp.sin(angle)


def rotate(x_HE: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """x [..., H, E] rotated by the angles of `rope_table`."""
    cos, sin = table
    a, b = jnp.split(x_HE.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_HE.dtype)


def attend(q_BTGRE, k_BGSE, v_BGSE, allowed_BTS, pseudo: Pseudo | None) -> jax.Array:
    """Softmax attention of T queries over S keys and the pseudo positions.

    Args:
      q_BTGRE: queries, the R = H/G heads that share a kv head together.
      k_BGSE, v_BGSE: keys and values, kv head before position so that each head's keys are contiguous.
      allowed_BTS: bool, query t may see key s; B or T may be 1 to broadcast.
      pseudo: pseudo positions or None.

    Returns:
      [B,T,G,R,E] in the dtype of v.
    """
    scale = q_BTGRE.shape[-1] ** -0.5
    s_BGRTS = jnp.einsum("btgre,bgse->bgrts", q_BTGRE, k_BGSE, preferred_element_type=jnp.float32) * scale
    s_BGRTS = jnp.where(allowed_BTS[:, None, None], s_BGRTS, OFF)
    top = s_BGRTS.max(-1, keepdims=True)
    if pseudo is None:
        p_BGRTS = jnp.exp(s_BGRTS - jax.lax.stop_gradient(top))
        out = jnp.einsum("bgrts,bgse->bgrte", p_BGRTS.astype(v_BGSE.dtype), v_BGSE, preferred_element_type=jnp.float32)
        total = p_BGRTS.sum(-1, keepdims=True)
    else:
        z_BGRTJ = jnp.einsum("btgre,bjge->bgrtj", q_BTGRE, pseudo.k_BJGE, preferred_element_type=jnp.float32) * scale
        z_BGRTJ += pseudo.bias_BTJ[:, None, None]
        top = jax.lax.stop_gradient(jnp.maximum(top, z_BGRTJ.max(-1, keepdims=True)))
        p_BGRTS, pz_BGRTJ = jnp.exp(s_BGRTS - top), jnp.exp(z_BGRTJ - top)
        out = jnp.einsum("bgrts,bgse->bgrte", p_BGRTS.astype(v_BGSE.dtype), v_BGSE, preferred_element_type=jnp.float32)
        out += jnp.einsum("bgrtj,bjge->bgrte", pz_BGRTJ, pseudo.v_BJGE, preferred_element_type=jnp.float32)
        total = p_BGRTS.sum(-1, keepdims=True) + pz_BGRTJ.sum(-1, keepdims=True)
    return (out / total).transpose(0, 3, 1, 2, 4).astype(v_BGSE.dtype)


def causal_attend(q_BTGRE, k_BGSE, v_BGSE, *, window: int | None, pseudo: Pseudo | None) -> jax.Array:
    """Causal self-attention of a whole sequence, queries taken QUERY_BLOCK at a time."""
    length = q_BTGRE.shape[1]

    def block(start, q, bias):
        rows = start + jnp.arange(q.shape[1])[:, None]
        cols = jnp.arange(length)[None, :]
        allowed = (cols <= rows) if window is None else (cols <= rows) & (rows - cols < window)
        mine = None if pseudo is None else dataclasses.replace(pseudo, bias_BTJ=bias)
        return attend(q, k_BGSE, v_BGSE, allowed[None], mine)

    bias_BTJ = jnp.zeros((1, length, 0)) if pseudo is None else pseudo.bias_BTJ
    if length <= QUERY_BLOCK:
        return block(0, q_BTGRE, bias_BTJ)
    n = -(-length // QUERY_BLOCK)

    def blocks(x):
        x = jnp.pad(x, [(0, 0), (0, n * QUERY_BLOCK - length)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(x.shape[0], n, QUERY_BLOCK, *x.shape[2:]).swapaxes(0, 1)

    starts = jnp.arange(n) * QUERY_BLOCK
    out = jax.lax.map(jax.checkpoint(lambda a: block(*a)), (starts, blocks(q_BTGRE), blocks(bias_BTJ)))
    return out.swapaxes(0, 1).reshape(q_BTGRE.shape[0], n * QUERY_BLOCK, *q_BTGRE.shape[2:])[:, :length]


@struct.dataclass
class NodePseudo:
    """One pseudo position a node: k_WUGE, v_WUGE, and bias_WU, log gamma where z is on and OFF elsewhere."""

    k_WUGE: jax.Array
    v_WUGE: jax.Array
    bias_WU: jax.Array

    def merge(self, q_WUGRE, heads_WUGRE, norm_WUGR) -> jax.Array:
        """Adds the pseudo position to a finished softmax, given the log of its normaliser."""
        s_WUGR = jnp.einsum("wugre,wuge->wugr", q_WUGRE, self.k_WUGE, preferred_element_type=jnp.float32)
        s_WUGR = s_WUGR * q_WUGRE.shape[-1] ** -0.5 + self.bias_WU[..., None, None]
        share = jax.nn.sigmoid(s_WUGR - norm_WUGR)[..., None]  # exactly 0 where OFF
        v = self.v_WUGE[..., None, :].astype(jnp.float32)
        return (heads_WUGRE.astype(jnp.float32) * (1 - share) + share * v).astype(heads_WUGRE.dtype)
