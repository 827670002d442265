"""Keys and values of all prompts, computed once, with bounded activations.

Rows are taken some at a time and the MLP sees MLP_TOKENS tokens at a time, so memory beyond the result grows neither
with the number of prompts nor, beyond the residual stream, with their length. Queries are blocked by causal_attend.
"""

import jax
import jax.numpy as jnp

from iiblpo_jax.model.attention import causal_attend, rope_frequencies, rope_table
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.layer import Layer
from iiblpo_jax.rollout import layers
from iiblpo_jax.rollout.cache import to_store
from iiblpo_jax.rollout.publication import Published, look_up

ROW_TOKENS = 2**14  # prompt tokens, padding included, that are in flight at once; a longer prompt is alone
MLP_TOKENS = 2**12  # tokens the gated MLP, four times as wide as the residual stream or more, sees at once


def prefill(published: Published, prompt_PS: jax.Array, config: ModelConfig, dtype: str) -> tuple[jax.Array, jax.Array]:
    """Keys [L,P,G,E,S] and values [L,P,G,S,E] of right-padded prompts, as a Cache of `dtype` holds them."""
    stacked, (p, s) = published.stacked(), prompt_PS.shape
    rows = max(1, min(p, ROW_TOKENS // s))
    chunks = -(-p // rows)
    if chunks == 1:
        return _forward(published, stacked, prompt_PS, config, dtype)
    rows = -(-p // chunks)
    chunks_NPS = jnp.pad(prompt_PS, [(0, rows * chunks - p), (0, 0)]).reshape(chunks, rows, s)
    kv = jax.lax.map(lambda rows_PS: _forward(published, stacked, rows_PS, config, dtype), chunks_NPS)
    # [chunks, L, rows, ...] -> [L, chunks * rows, ...]
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :p], kv)


def _forward(published: Published, stacked: Layer, tokens_PS, config: ModelConfig, dtype: str):
    p, s = tokens_PS.shape
    table = rope_table(jnp.tile(jnp.arange(s), p), rope_frequencies(config))

    def layer(x_ND, weights):
        q, k, v = (x.reshape(p, s, *x.shape[1:]) for x in layers.qkv(weights, x_ND, table, config))
        k_PGSE, v_PGSE = k.swapaxes(1, 2), v.swapaxes(1, 2)
        heads = causal_attend(q, k_PGSE, v_PGSE, window=config.sliding_window, pseudo=None)
        x_ND = _finish(weights, x_ND, heads.reshape(p * s, *heads.shape[2:]), config)
        return x_ND, (to_store(k_PGSE.swapaxes(2, 3), dtype), to_store(v_PGSE, dtype))

    return jax.lax.scan(layer, look_up(published, tokens_PS.reshape(-1)), stacked)[1]


def _finish(weights: Layer, x_ND, heads_NGRE, config: ModelConfig):
    """`layers.finish`, MLP_TOKENS tokens at a time."""
    n = x_ND.shape[0]
    if n <= MLP_TOKENS:
        return layers.finish(weights, x_ND, heads_NGRE, config)
    chunks = -(-n // MLP_TOKENS)
    each = -(-n // chunks)

    def split(x):
        return jnp.pad(x, [(0, each * chunks - n)] + [(0, 0)] * (x.ndim - 1)).reshape(chunks, each, *x.shape[1:])

    out = jax.lax.map(lambda a: layers.finish(weights, *a, config), (split(x_ND), split(heads_NGRE)))
    return out.reshape(-1, x_ND.shape[1])[:n]
