"""One transformer layer of a publication, over tokens [N, D] that may stand anywhere: prefill and decoding share it."""

import jax
import jax.numpy as jnp

from iiblpo_jax.model.attention import rotate
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.layer import Layer, multiply, rms_norm


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
    norm = layer.attn_norm_D if gain_ND is None else layer.attn_norm_D + gain_ND
    heads_NGME = multiply(rms_norm(x_ND, norm, config.norm_eps), layer.qkv).astype(x_ND.dtype)  # M = R + 2
    if layer.qkv_bias is not None:
        heads_NGME += layer.qkv_bias
    qk_NGME, v_NGE = heads_NGME[:, :, :-1], heads_NGME[:, :, -1]
    if layer.qk_norm is not None:
        qk_NGME = rms_norm(qk_NGME, layer.qk_norm, config.norm_eps)
    qk_NGME = rotate(qk_NGME, tuple(x[:, None] for x in table))
    return qk_NGME[:, :, :-1], qk_NGME[:, :, -1], v_NGE


def finish(layer: Layer, x_ND, heads_NGRE, config: ModelConfig):
    """Output projection and gated MLP with their residuals."""
    x_ND += multiply(heads_NGRE, layer.o).astype(x_ND.dtype)
    y_ND = rms_norm(x_ND, layer.mlp_norm_D, config.norm_eps)
    gate_NF, up_NF = jnp.moveaxis(multiply(y_ND, layer.gate_up).astype(x_ND.dtype), 1, 0)
    return x_ND + multiply(jax.nn.silu(gate_NF) * up_NF, layer.down).astype(x_ND.dtype)
