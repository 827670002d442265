"""One token for every slot through the whole model."""

import jax
import jax.numpy as jnp
from flax import struct

from iiblpo_jax.devices.mesh import constrain
from iiblpo_jax.model.attention import OFF, rope_frequencies, rope_table
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.layer import rms_norm
from iiblpo_jax.model.steering.psa import PSA
from iiblpo_jax.rollout import layers
from iiblpo_jax.rollout.cache import Cache, attend, write
from iiblpo_jax.rollout.publication import Published, look_up


@struct.dataclass
class Injection:
    """What z adds to the last J layers of every slot: the unscaled gain of the norm, one pseudo key and value."""

    gain_JBD: jax.Array
    k_JBGE: jax.Array
    v_JBGE: jax.Array


def injections(psa: PSA, z_BZ: jax.Array, n_layers: int, kv_copies: int) -> Injection:
    """Injections of the latents of all slots for the last n_layers layers, zeros below those that PSA injects.

    kv_copies: of the Published that decodes.
    """
    below = n_layers - psa.gain.shape[0]

    def pad(w):
        return jnp.pad(w[...], [(below, 0)] + [(0, 0)] * (w.ndim - 1))

    def heads(w):
        x_JBGE = jnp.repeat(jnp.einsum("bz,jzge->jbge", z_BZ, pad(w)), kv_copies, axis=2)
        return constrain(x_JBGE, None, None, "kv_heads", None)

    gain_JBD = jnp.einsum("bz,jzd->jbd", z_BZ, pad(psa.gain))
    return Injection(gain_JBD=gain_JBD, k_JBGE=heads(psa.key), v_JBGE=heads(psa.value))


def decode_step(
    published: Published,
    config: ModelConfig,
    cache: Cache,
    token_B: jax.Array,
    position_B: jax.Array,
    longest: jax.Array,
    injected: Injection | None = None,
    gamma_B: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
    """Feeds one token a slot; writes its keys and values at its position.

    Args:
      published: weights.
      config: architecture.
      cache: of all layers.
      token_B, position_B: token to feed and where it stands in its sequence. Idle slots are fed too, and write where
        they stand: the caller sees to it that nobody needs what is there.
      longest: largest position of a slot whose output matters; nothing behind it is read, but for rounding up.
      injected: what z adds, or None when no slot ever has a z. A scan wants J = L.
      gamma_B: strength of z; 0 = off.

    Returns:
      Final-norm hidden states [B,D] and the caches.
    """
    table = rope_table(position_B, rope_frequencies(config))
    # Where z is off the pseudo position weighs exactly 0 and the gain is exactly 0.
    bias_B = None if gamma_B is None else jnp.where(gamma_B > 0, jnp.log(jnp.maximum(gamma_B, 1e-30)), OFF)

    def layer(x_BD, cache: Cache, i, weights, z: Injection | None):
        gain_BD, pseudo = (None, None) if z is None else (gamma_B[:, None] * z.gain_JBD, (z.k_JBGE, z.v_JBGE, bias_B))
        q, k, v = layers.qkv(weights, x_BD, table, config, gain_BD)
        cache = write(cache, i, position_B, k, v)
        heads = attend(q, cache, i, position_B, longest, pseudo, config.sliding_window)
        return layers.finish(weights, x_BD, heads.astype(x_BD.dtype), config), cache

    x_BD = look_up(published, token_B)
    if published.unrolled:
        below = config.n_layers - (0 if injected is None else injected.gain_JBD.shape[0])
        for i, weights in enumerate(published.layers):
            z = None if injected is None or i < below else jax.tree.map(lambda a, j=i - below: a[j], injected)
            x_BD, cache = layer(x_BD, cache, i, weights, z)
    else:
        xs = jnp.arange(config.n_layers), published.layers, injected
        (x_BD, cache), _ = jax.lax.scan(lambda carry, x: (layer(*carry, *x), None), (x_BD, cache), xs)
    return rms_norm(x_BD, published.final_norm_D, config.norm_eps), cache
