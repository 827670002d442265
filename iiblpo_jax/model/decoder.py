"""One decoder for Qwen2/2.5, Qwen3, Llama 2/3 and Mistral: what training computes.

Layers are stacked and scanned (compile time constant in depth, optional remat). Decoding has weights of its own shape
(publication.py) and its own layer (rollout/layers.py), over the same rms_norm and rope. Linear weights are stored
[out, in] as Hugging Face stores them: loading transposes nothing, and skinny decode matmuls read them contiguously. The
dtype of the weights is the dtype of the computation; norms and softmaxes are float32.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from iiblpo_jax.devices.mesh import constrain
from iiblpo_jax.model import attention
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.layer import Block, rms_norm
from iiblpo_jax.model.steering.psa import PSA, Latent, layer_injection, layer_weights


class Decoder(nnx.Module):
    """Embedding, L stacked layers, final norm, LM head (the embedding itself when tied)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        self.config = config
        v, d = config.vocab_size, config.d_model
        self.embed = nnx.Param(jax.random.normal(rngs.params(), (v, d)) * 0.02, axes=("vocab", "embed"))
        self.layers = Block(config, stack=config.n_layers, rngs=rngs)
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
    model: Decoder, tokens_BT: jax.Array, *, latent: Latent | None = None, psa: PSA | None = None, remat: bool = False
) -> jax.Array:
    """Final-norm hidden states [B,T,D] of right-padded rows (causality makes a padding mask unnecessary).

    Args:
      model: the decoder.
      tokens_BT: token ids; positions are 0..T-1.
      latent, psa: pseudo self-attention, both or neither.
      remat: recompute each layer in the backward pass instead of keeping its activations.
    """
    config = model.config

    def of_rows(x_BTD):
        return constrain(x_BTD, "batch", None, None)

    x_BTD = of_rows(constrain(model.embed[...], "vocab", None)[tokens_BT])
    positions_BT = jnp.broadcast_to(jnp.arange(tokens_BT.shape[1]), tokens_BT.shape)
    block_graph, stacked = nnx.split(model.layers)
    injected = None if psa is None else layer_weights(psa, config.n_layers)

    def layer(x_BTD, weights):
        block_state, psa_layer = weights
        block = nnx.merge(block_graph, block_state)
        gain, pseudo = (None, None) if psa_layer is None else layer_injection(psa_layer, latent, x_BTD.dtype)
        q, k, v = block.qkv(x_BTD, positions_BT, gain)
        k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)
        heads = attention.causal_attend(q, k, v, window=config.sliding_window, pseudo=pseudo)
        return of_rows(block.finish(x_BTD, heads)), None

    x_BTD, _ = jax.lax.scan(jax.checkpoint(layer) if remat else layer, x_BTD, (stacked, injected))
    return rms_norm(x_BTD, model.final_norm[...], config.norm_eps)


def logits(model: Decoder, tokens_BT: jax.Array) -> jax.Array:
    """float32 logits [B,T,V]; whole, so for inspection: training uses logprobs.chunked_logprobs."""
    return project(model, hidden_states(model, jnp.asarray(tokens_BT)))
