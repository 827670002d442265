"""Decoding one token per slot against contiguous key/value caches."""

import jax
import jax.numpy as jnp
from flax import struct

from iiblpo_jax.model import attention
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import Block, rms_norm
from iiblpo_jax.model.psa import PSA


@struct.dataclass
class LayerCache:
    """Keys and values of one layer, [B,G,C,E]; row b is slot b, column c is position c of its sequence."""

    k_BGCE: jax.Array
    v_BGCE: jax.Array


@struct.dataclass
class Injection:
    """What z adds to one layer of every slot: the unscaled gain of the norm and one pseudo key and value."""

    gain_BD: jax.Array
    k_BGE: jax.Array
    v_BGE: jax.Array


def empty_cache(config: ModelConfig, slots: int, capacity: int, dtype) -> list[LayerCache]:
    """Zeroed caches, one a layer."""
    shape = (slots, config.n_kv_heads, capacity, config.head_dim)
    return [LayerCache(k_BGCE=jnp.zeros(shape, dtype), v_BGCE=jnp.zeros(shape, dtype)) for _ in range(config.n_layers)]


def injections(psa: PSA, z_BZ: jax.Array, n_layers: int, dtype) -> list[Injection | None]:
    """Injection of every layer for the latents of all slots; None below the injected layers."""
    n = psa.gain.shape[0]
    of_layer = lambda i: Injection(  # noqa: E731
        gain_BD=z_BZ @ psa.gain[i],
        k_BGE=jnp.einsum("bz,zge->bge", z_BZ, psa.key[i]).astype(dtype),
        v_BGE=jnp.einsum("bz,zge->bge", z_BZ, psa.value[i]).astype(dtype),
    )
    return [None] * (n_layers - n) + [of_layer(i) for i in range(n)]


def fill_prompts(cache: list[LayerCache], take_B, prompt_B, k_LPGSE, v_LPGSE) -> list[LayerCache]:
    """Copies the prefilled keys and values of prompt_B[b] into slot b where take_B[b]."""

    def fill(old, new_PGSE):
        s = new_PGSE.shape[2]
        head = jnp.where(take_B[:, None, None, None], new_PGSE[prompt_B].astype(old.dtype), old[:, :, :s])
        return old.at[:, :, :s].set(head)

    return [
        LayerCache(k_BGCE=fill(c.k_BGCE, k_LPGSE[i]), v_BGCE=fill(c.v_BGCE, v_LPGSE[i])) for i, c in enumerate(cache)
    ]


def decode_step(
    layers: list[Block],
    embed_VD: jax.Array,
    final_norm_D: jax.Array,
    cache: list[LayerCache],
    token_B: jax.Array,
    position_B: jax.Array,
    active_B: jax.Array,
    injected: list[Injection | None] | None = None,
    gamma_B: jax.Array | None = None,
) -> tuple[jax.Array, list[LayerCache]]:
    """Feeds one token a slot; writes its keys and values at its position.

    Args:
      layers: per-layer form of the decoder.
      embed_VD, final_norm_D: the decoder's other weights.
      cache: one LayerCache a layer.
      token_B, position_B: token to feed and where it stands in its sequence.
      active_B: slots that take part; the others write nothing and their output is meaningless.
      injected: per-layer injections, or None when no slot ever has a z.
      gamma_B: strength of z; 0 = off.

    Returns:
      Final-norm hidden states [B,D] and the caches.
    """
    config = layers[0].config
    rows, capacity = jnp.arange(token_B.shape[0]), cache[0].k_BGCE.shape[2]
    write_B = jnp.where(active_B, position_B, capacity)
    back_BC = position_B[:, None] - jnp.arange(capacity)
    allowed_B1C = ((back_BC >= 0) & (back_BC < (config.sliding_window or capacity)))[:, None]
    x_B1D, out = embed_VD[token_B][:, None], []
    for i, block in enumerate(layers):
        gain, pseudo = (None, None) if injected is None else _inject(injected[i], gamma_B)
        q, k, v = block.qkv(x_B1D, position_B[:, None], gain)
        layer = LayerCache(
            k_BGCE=cache[i].k_BGCE.at[rows, :, write_B].set(k[:, 0].astype(cache[i].k_BGCE.dtype), mode="drop"),
            v_BGCE=cache[i].v_BGCE.at[rows, :, write_B].set(v[:, 0].astype(cache[i].v_BGCE.dtype), mode="drop"),
        )
        x_B1D = block.finish(x_B1D, attention.attend(q, layer.k_BGCE, layer.v_BGCE, allowed_B1C, pseudo))
        out.append(layer)
    return rms_norm(x_B1D, final_norm_D, config.norm_eps)[:, 0], out


def _inject(layer: Injection | None, gamma_B: jax.Array):
    """Gain [B,1,D] and pseudo position of one layer at strength gamma_B."""
    if layer is None:
        return None, None
    bias_B = jnp.where(gamma_B > 0, jnp.log(jnp.maximum(gamma_B, 1e-30)), attention.OFF)
    pseudo = attention.Pseudo(k_BJGE=layer.k_BGE[:, None], v_BJGE=layer.v_BGE[:, None], bias_BTJ=bias_B[:, None, None])
    return (gamma_B[:, None] * layer.gain_BD)[:, None], pseudo
