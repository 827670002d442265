"""Keys and values of all prompts, computed once, with bounded activations.

Rows are taken some at a time and the MLP sees MLP_TOKENS tokens at a time, so memory beyond the result grows neither
with the number of prompts nor, beyond the residual stream, with their length. Queries are blocked by causal_attend.
"""

import jax
import jax.numpy as jnp

from iiblpo_jax.model.attention import causal_attend, rope_frequencies, rope_table
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.layer import Layer, finish, run_layer
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
    table = rope_table(jnp.arange(tokens_PS.shape[1])[None], rope_frequencies(config))

    def attend(q_PSGRE, k_PSGE, v_PSGE):
        k_PGSE, v_PGSE = k_PSGE.swapaxes(1, 2), v_PSGE.swapaxes(1, 2)
        kept = to_store(k_PGSE.swapaxes(2, 3), dtype), to_store(v_PGSE, dtype)
        return *causal_attend(q_PSGRE, k_PGSE, v_PGSE, window=config.sliding_window), kept

    def layer(x_PSD, weights):
        return run_layer(weights, x_PSD, table, config, attend, finish=_finish)

    return jax.lax.scan(layer, look_up(published, tokens_PS), stacked)[1]


def _finish(weights: Layer, x_PSD, heads_PSGRE, config: ModelConfig):
    """`layer.finish`, MLP_TOKENS tokens at a time."""
    n = x_PSD.shape[0] * x_PSD.shape[1]
    if n <= MLP_TOKENS:
        return finish(weights, x_PSD, heads_PSGRE, config)
    chunks = -(-n // MLP_TOKENS)
    each = -(-n // chunks)

    def split(x_PS):
        x = x_PS.reshape(n, *x_PS.shape[2:])
        return jnp.pad(x, [(0, each * chunks - n)] + [(0, 0)] * (x.ndim - 1)).reshape(chunks, each, *x.shape[1:])

    out = jax.lax.map(lambda a: finish(weights, a[0], a[1], config), (split(x_PSD), split(heads_PSGRE)))
    return out.reshape(-1, x_PSD.shape[-1])[:n].reshape(x_PSD.shape)
