"""One transformer layer of a publication, over tokens [N, D] that may stand anywhere: prefill and decoding share it."""

import jax
import jax.numpy as jnp

from iiblpo_jax.model.attention import rotate
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import rms_norm
from iiblpo_jax.publication import Layer, multiply


def qkv(layer: Layer, x_ND, table, config: ModelConfig, gain_ND=None):
    """Norm, project, rotate.

    Args:
      layer: weights.
      x_ND: residual stream.
      table: `rope_table` of the tokens' positions.
      config: architecture.
      gain_ND: added to the norm's weight; None = nothing.

    Returns:
      q [N,G,R,E] (R = H/G), k and v [N,G,E].
    """
    n, h, g = x_ND.shape[0], config.n_heads, config.n_kv_heads
    norm = layer.attn_norm_D if gain_ND is None else layer.attn_norm_D + gain_ND
    heads_NO = multiply(rms_norm(x_ND, norm, config.norm_eps), layer.qkv).astype(x_ND.dtype)
    if layer.qkv_bias_O is not None:
        heads_NO += layer.qkv_bias_O
    heads_NHE = heads_NO.reshape(n, h + 2 * g, config.head_dim)
    qk_NHE, v_NGE = heads_NHE[:, : h + g], heads_NHE[:, h + g :]
    if layer.qk_norm_HE is not None:
        qk_NHE = rms_norm(qk_NHE, layer.qk_norm_HE, config.norm_eps)
    qk_NHE = rotate(qk_NHE, table)
    return qk_NHE[:, :h].reshape(n, g, h // g, config.head_dim), qk_NHE[:, h:], v_NGE


def finish(layer: Layer, x_ND, heads_NGRE, config: ModelConfig):
    """Output projection and gated MLP with their residuals."""
    x_ND += multiply(heads_NGRE.reshape(x_ND.shape[0], -1), layer.o).astype(x_ND.dtype)
    y_ND = rms_norm(x_ND, layer.mlp_norm_D, config.norm_eps)
    gate_NF, up_NF = jnp.split(multiply(y_ND, layer.gate_up).astype(x_ND.dtype), 2, axis=-1)
    return x_ND + multiply(jax.nn.silu(gate_NF) * up_NF, layer.down).astype(x_ND.dtype)
