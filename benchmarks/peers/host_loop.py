"""A plain JAX sampler: one jitted program a token, a Python loop around it, static batches.

What one writes first: the whole batch decodes until its longest row has stopped, and the host looks at every token to
know when that is. Weights are the per-layer list that decodes fastest, the caches are donated.
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from iiblpo_jax.model import attention
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import cast
from iiblpo_jax.model.layer import layer_of, rms_norm, run_layer


class HostLoop:
    """Weights in `dtype` and one program, compiled for whole prompts and for one token."""

    def __init__(self, config: ModelConfig, params: dict, dtype: str, stop: int):
        self.config, self.stop, self.dtype = config, stop, jnp.dtype(dtype)
        params = cast(params, self.dtype)
        # Arrays of their own: slices taken inside the program would copy every weight at every token.
        self.layers = [jax.tree.map(lambda w, i=i: w[i], params["layers"]) for i in range(config.n_layers)]
        self.top = {k: v for k, v in params.items() if k != "layers"}
        self.feed = jax.jit(self._feed, donate_argnums=2)

    def generate(self, prompts: np.ndarray, batch: int, max_tokens: int) -> dict:
        """Responses of prompts [N,S], `batch` at a time in the order given, and the seconds they took."""
        began, responses = time.perf_counter(), []
        for start in range(0, len(prompts), batch):
            responses += self._batch(prompts[start : start + batch], max_tokens)
        return {"seconds": time.perf_counter() - began, "responses": responses}

    def _batch(self, prompts, max_tokens):
        key, (b, s), columns, done_B = jax.random.key(0), prompts.shape, [], np.zeros(len(prompts), bool)
        shape = (b, self.config.n_kv_heads, s + max_tokens, self.config.head_dim)
        caches = [(jnp.zeros(shape, self.dtype), jnp.zeros(shape, self.dtype)) for _ in self.layers]
        tokens_BT, start = jnp.asarray(prompts), 0
        for t in range(max_tokens):
            token_B, caches = self.feed(self.layers, self.top, caches, tokens_BT, start, jax.random.fold_in(key, t))
            tokens_BT, start = token_B[:, None], s + t
            columns.append(np.asarray(token_B))
            done_B |= columns[-1] == self.stop
            if done_B.all():
                break
        return [self._cut(row.tolist()) for row in np.stack(columns, axis=1)]

    def _cut(self, row):
        return row[: row.index(self.stop) + 1] if self.stop in row else row

    def _feed(self, layers, top, caches, tokens_BT, start, key):
        """Feeds tokens at positions start.., returns the tokens that follow the last of them, and the caches."""
        positions_T = start + jnp.arange(tokens_BT.shape[1])
        allowed_1TC = (jnp.arange(caches[0][0].shape[2]) <= positions_T[:, None])[None]
        table = attention.rope_table(
            jnp.broadcast_to(positions_T, tokens_BT.shape), attention.rope_frequencies(self.config)
        )
        x_BTD, new = top["embed"][tokens_BT], []
        write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=2)
        for weights, (k_BGCE, v_BGCE) in zip(layers, caches, strict=True):

            def attend(q, k, v, k_BGCE=k_BGCE, v_BGCE=v_BGCE):
                held = write(k_BGCE, k.swapaxes(1, 2)), write(v_BGCE, v.swapaxes(1, 2))
                return *attention.attend(q, *held, allowed_1TC), held

            x_BTD, held = run_layer(layer_of(weights), x_BTD, table, self.config, attend)
            new.append(held)
        hidden_BD = rms_norm(x_BTD[:, -1], top["final_norm"], self.config.norm_eps)
        logits_BV = jnp.einsum("bd,vd->bv", hidden_BD, top["head"], preferred_element_type=jnp.float32)
        return jax.random.categorical(key, logits_BV).astype(jnp.int32), new
