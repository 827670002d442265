"""One decoder for Qwen2/2.5, Qwen3, Llama 2/3 and Mistral: what training computes.

Layers (layer.py) are stacked and scanned: compile time is constant in depth, and remat optional. The dtype of the
weights is the dtype of the computation; norms and softmaxes are float32.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from iiblpo_jax.devices.mesh import constrain
from iiblpo_jax.model import attention
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.layer import Inject, LayerStack, rms_norm, run_layer


class Decoder(nnx.Module):
    """Embedding, L stacked layers, final norm, LM head (the embedding itself when tied)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        v, d = config.vocab_size, config.d_model
        self.embed = nnx.Param(jax.random.normal(rngs.params(), (v, d)) * 0.02, axes=("vocab", "embed"))
        self.layers = LayerStack(config, rngs=rngs)
        self.final_norm = nnx.Param(jnp.ones((d,)), axes=("norm",))
        if not config.tied_embeddings:
            self.head = nnx.Param(jax.random.normal(rngs.params(), (v, d)) * d**-0.5, axes=("vocab", "embed"))


@functools.lru_cache(maxsize=32)
def graphdef(config: ModelConfig) -> nnx.GraphDef:
    """The static half of a Decoder; hashable, so it may be a static argument of jit."""
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))[0]


def bind(config: ModelConfig, params: dict) -> Decoder:
    """A Decoder over an existing dict of arrays (works inside jit, allocates nothing)."""
    return nnx.merge(graphdef(config), params)


def params_of(module: nnx.Module) -> dict:
    """The weights of a module as nested dicts of arrays; the form every jitted function takes."""
    return nnx.to_pure_dict(nnx.split(module)[1])


def cast(params: dict, dtype) -> dict:
    """All weights in `dtype`, which is then the dtype of the computation."""
    return jax.tree.map(lambda w: w.astype(dtype), params)


def output_weights(model: Decoder) -> jax.Array:
    """LM head [V,D]: logits = hidden @ head.T."""
    return model.embed[...] if model.config.tied_embeddings else model.head[...]


def project(model: Decoder, hidden: jax.Array) -> jax.Array:
    """float32 logits [..., V] of final hidden states [..., D]."""
    return jnp.einsum("...d,vd->...v", hidden, output_weights(model), preferred_element_type=jnp.float32)


def hidden_states(
    model: Decoder, tokens_BT: jax.Array, *, inject: Inject | None = None, remat: bool = False
) -> jax.Array:
    """Final-norm hidden states [B,T,D] of right-padded rows (causality makes a padding mask unnecessary).

    Args:
      model: the decoder.
      tokens_BT: token ids; positions are 0..T-1.
      inject: what steers the tokens [B,T]; None = the plain policy.
      remat: recompute each layer in the backward pass instead of keeping its activations.
    """
    config = model.config

    def of_rows(x_BTD):
        return constrain(x_BTD, "batch", None, None)

    def attend(q_BTGRE, k_BTGE, v_BTGE):
        kv = (x.swapaxes(1, 2) for x in (k_BTGE, v_BTGE))
        return *attention.causal_attend(q_BTGRE, *kv, window=config.sliding_window), None

    x_BTD = of_rows(constrain(model.embed[...], "vocab", None)[tokens_BT])
    table = attention.rope_table(jnp.arange(tokens_BT.shape[1])[None], attention.rope_frequencies(config))

    def layer(x_BTD, weights):
        mine, injected = weights
        steer = None if inject is None else inject.at(injected)
        x_BTD, _ = run_layer(mine, x_BTD, table, config, attend, steer)
        return of_rows(x_BTD), None

    xs = model.layers.stacked(), None if inject is None else inject.layers
    x_BTD, _ = jax.lax.scan(jax.checkpoint(layer) if remat else layer, x_BTD, xs)
    return rms_norm(x_BTD, model.final_norm[...], config.norm_eps)


def logits(model: Decoder, tokens_BT: jax.Array) -> jax.Array:
    """float32 logits [B,T,V]; whole, so for inspection: training uses logprobs.chunked_logprobs."""
    return project(model, hidden_states(model, jnp.asarray(tokens_BT)))
