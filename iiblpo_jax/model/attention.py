"""Grouped-query attention with an optional pseudo position, and rotary embeddings.

The pseudo position of pseudo self-attention (psa.py) is merged into a finished softmax by the log of its normaliser
rather than concatenated as a key. So every kind of attention (whole rows here, paths in packed/attention.py, caches in
rollout/cache.py) only has to return that log, keys and values are never copied, and a query whose pseudo position is
switched off gets bit for bit what plain attention gives.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from iiblpo_jax.model.config import Llama3Rope, ModelConfig

OFF = -1e30  # log-weight of a key that must not be seen; exp(OFF - anything) is exactly 0 in float32
QUERY_BLOCK = 512  # queries scored at once in a full forward: bounds the [heads, block, keys] scores


@struct.dataclass
class Pseudo:
    """One pseudo position a token, for one layer; tokens may have any leading axes.

    Attributes:
      k_GE: pseudo keys [...,G,E], no rope.
      v_GE: pseudo values [...,G,E].
      bias: log gamma [...] where the token uses its pseudo position, OFF elsewhere.
    """

    k_GE: jax.Array
    v_GE: jax.Array
    bias: jax.Array

    def merge(self, q_GRE: jax.Array, heads_GRE: jax.Array, norm_GR: jax.Array) -> jax.Array:
        """Adds the pseudo position to a finished softmax.

        Args:
          q_GRE: queries [...,G,R,E].
          heads_GRE: the softmax's result for them.
          norm_GR: the log of its normaliser, float32.

        Returns:
          [...,G,R,E] in the dtype of heads; the same bits where the bias is OFF.
        """
        s_GR = jnp.einsum("...gre,...ge->...gr", q_GRE, self.k_GE, preferred_element_type=jnp.float32)
        s_GR = s_GR * q_GRE.shape[-1] ** -0.5
        share_GR1 = jax.nn.sigmoid(s_GR + self.bias[..., None, None] - norm_GR)[..., None]  # exactly 0 where OFF
        v_G1E = self.v_GE[..., None, :].astype(jnp.float32)
        return (heads_GRE.astype(jnp.float32) * (1 - share_GR1) + share_GR1 * v_G1E).astype(heads_GRE.dtype)


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


def attend(q_BTGRE, k_BGSE, v_BGSE, allowed_BTS) -> tuple[jax.Array, jax.Array]:
    """Softmax attention of T queries over S keys.

    Args:
      q_BTGRE: queries, the R = H/G heads that share a kv head together.
      k_BGSE, v_BGSE: keys and values, kv head before position so that each head's keys are contiguous.
      allowed_BTS: bool, query t may see key s; B or T may be 1 to broadcast.

    Returns:
      Heads [B,T,G,R,E] in the dtype of v, and the log of the softmax's normaliser [B,T,G,R], float32.
    """
    s_BGRTS = jnp.einsum("btgre,bgse->bgrts", q_BTGRE, k_BGSE, preferred_element_type=jnp.float32)
    s_BGRTS = jnp.where(allowed_BTS[:, None, None], s_BGRTS * q_BTGRE.shape[-1] ** -0.5, OFF)
    top = jax.lax.stop_gradient(s_BGRTS.max(-1, keepdims=True))
    p_BGRTS = jnp.exp(s_BGRTS - top)
    out = jnp.einsum("bgrts,bgse->bgrte", p_BGRTS.astype(v_BGSE.dtype), v_BGSE, preferred_element_type=jnp.float32)
    total = p_BGRTS.sum(-1, keepdims=True)
    # The maximum once more, in other words: XLA on CPU makes exp(s - max) in one kernel where nobody else reads the
    # max, and heads would differ in their last bit between callers who want the norm and those who do not.
    top = -jax.lax.stop_gradient(-s_BGRTS).min(-1, keepdims=True)
    norm_BTGR = (top + jnp.log(total))[..., 0].transpose(0, 3, 1, 2)
    return (out / total).transpose(0, 3, 1, 2, 4).astype(v_BGSE.dtype), norm_BTGR


def causal_attend(q_BTGRE, k_BGSE, v_BGSE, *, window: int | None) -> tuple[jax.Array, jax.Array]:
    """Causal self-attention of a whole sequence, queries taken QUERY_BLOCK at a time; results of `attend`."""
    length = q_BTGRE.shape[1]

    def block(start, q):
        rows = start + jnp.arange(q.shape[1])[:, None]
        cols = jnp.arange(length)[None, :]
        allowed = (cols <= rows) if window is None else (cols <= rows) & (rows - cols < window)
        return attend(q, k_BGSE, v_BGSE, allowed[None])

    if length <= QUERY_BLOCK:
        return block(0, q_BTGRE)
    n = -(-length // QUERY_BLOCK)
    padded = jnp.pad(q_BTGRE, [(0, 0), (0, n * QUERY_BLOCK - length), (0, 0), (0, 0), (0, 0)])
    blocks = padded.reshape(padded.shape[0], n, QUERY_BLOCK, *padded.shape[2:]).swapaxes(0, 1)
    out = jax.lax.map(jax.checkpoint(lambda a: block(*a)), (jnp.arange(n) * QUERY_BLOCK, blocks))

    def rows(x):
        return x.swapaxes(0, 1).reshape(x.shape[1], n * QUERY_BLOCK, *x.shape[3:])[:, :length]

    return jax.tree.map(rows, out)
