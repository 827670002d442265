"""One token for every slot through the whole model."""

import jax
import jax.numpy as jnp

from iiblpo_jax.model.attention import rope_frequencies, rope_table
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.layer import Inject, rms_norm, run_layer
from iiblpo_jax.rollout.cache import Cache, attend, write
from iiblpo_jax.rollout.publication import Published, look_up


def decode_step(
    published: Published,
    config: ModelConfig,
    cache: Cache,
    token_B: jax.Array,
    position_B: jax.Array,
    longest: jax.Array,
    inject: Inject | None = None,
) -> tuple[jax.Array, Cache]:
    """Feeds one token a slot; writes its keys and values at its position.

    Args:
      published: weights.
      config: architecture.
      cache: of all layers.
      token_B, position_B: token to feed and where it stands in its sequence. Idle slots are fed too, and write where
        they stand: the caller sees to it that nobody needs what is there.
      longest: largest position of a slot whose output matters; nothing behind it is read, but for rounding up.
      inject: what steers the slots, or None when no slot ever has a z. A scan wants it for all L layers.

    Returns:
      Final-norm hidden states [B,D] and the caches.
    """
    table = rope_table(position_B, rope_frequencies(config))

    def layer(x_BD, cache: Cache, i, weights, injected):
        def attend_cache(q_BGRE, k_BGE, v_BGE):
            held = write(cache, i, position_B, k_BGE, v_BGE)
            return *attend(q_BGRE, held, i, position_B, longest, config.sliding_window), held

        steer = None if inject is None or injected is None else inject.at(injected)
        return run_layer(weights, x_BD, table, config, attend_cache, steer)

    x_BD, injected = look_up(published, token_B), None if inject is None else inject.layers
    if isinstance(published.layers, list):
        below = config.n_layers - (0 if inject is None else jax.tree.leaves(injected)[0].shape[0])
        for i, weights in enumerate(published.layers):
            mine = None if i < below else jax.tree.map(lambda a, j=i - below: a[j], injected)
            x_BD, cache = layer(x_BD, cache, i, weights, mine)
    else:
        xs = jnp.arange(config.n_layers), published.layers, injected
        (x_BD, cache), _ = jax.lax.scan(lambda carry, x: (layer(*carry, *x), None), (x_BD, cache), xs)
    return rms_norm(x_BD, published.final_norm_D, config.norm_eps), cache
