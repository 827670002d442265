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

from iiblpo_jax.mesh import constrain
from iiblpo_jax.model import attention
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.psa import PSA, Latent, layer_injection, layer_weights


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * weight over the last axis, statistics in float32, result in the dtype of x."""
    x32 = x.astype(jnp.float32)
    x32 *= jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * weight).astype(x.dtype)


@jax.custom_vjp
def widen(x_BTD: jax.Array, w_FD: jax.Array) -> jax.Array:
    """x @ w.T, whose weight gradient is made as [D,F] and then transposed.

    A matmul that sums over leading axes transposes its first operand, and XLA on CPU fuses what made that operand into
    the copy: for the wide side this was the gradient of the gated unit, read against its grain, a fifth of an update.
    """
    return jnp.einsum("btd,fd->btf", x_BTD, w_FD)


def _widen_backward(saved, d_BTF):
    x_BTD, w_FD = saved
    return jnp.einsum("btf,fd->btd", d_BTF, w_FD), jnp.einsum("btd,btf->df", x_BTD, d_BTF).T


widen.defvjp(lambda x_BTD, w_FD: (widen(x_BTD, w_FD), (x_BTD, w_FD)), _widen_backward)


class Block(nnx.Module):
    """One transformer layer; `stack` gives every weight a leading axis of that many layers."""

    def __init__(self, config: ModelConfig, *, stack: int, rngs: nnx.Rngs):
        c = self.config = config
        d, f, e, h, g = c.d_model, c.d_ff, c.head_dim, c.n_heads, c.n_kv_heads

        def weight(shape, axes, fan_in):
            w = jax.random.normal(rngs.params(), (stack, *shape)) * fan_in**-0.5
            return nnx.Param(w, axes=("layers", *axes))

        def constant(value, shape, axes):
            return nnx.Param(jnp.full((stack, *shape), value), axes=("layers", *axes))

        self.attn_norm = constant(1.0, (d,), ("norm",))
        self.q = weight((h, e, d), ("heads", "head", "embed"), d)
        self.k = weight((g, e, d), ("kv_heads", "head", "embed"), d)
        self.v = weight((g, e, d), ("kv_heads", "head", "embed"), d)
        self.o = weight((d, h, e), ("embed", "heads", "head"), h * e)
        if c.qkv_bias:
            self.q_bias = constant(0.0, (h, e), ("heads", "head"))
            self.k_bias = constant(0.0, (g, e), ("kv_heads", "head"))
            self.v_bias = constant(0.0, (g, e), ("kv_heads", "head"))
        if c.qk_norm:
            self.q_norm = constant(1.0, (e,), ("norm",))
            self.k_norm = constant(1.0, (e,), ("norm",))
        self.mlp_norm = constant(1.0, (d,), ("norm",))
        self.gate = weight((f, d), ("mlp", "embed"), d)
        self.up = weight((f, d), ("mlp", "embed"), d)
        self.down = weight((d, f), ("embed", "mlp"), f)

    def qkv(self, x_BTD, positions_BT, gain_BTD=None):
        """Norm, project, rotate: q [B,T,G,H/G,E], k and v [B,T,G,E]. `gain_BTD` is added to the norm's weight."""
        c = self.config
        norm = self.attn_norm[...] if gain_BTD is None else self.attn_norm[...] + gain_BTD
        x_BTD = rms_norm(x_BTD, norm, c.norm_eps)
        q, k, v = (jnp.einsum("btd,hed->bthe", x_BTD, w[...]) for w in (self.q, self.k, self.v))
        if c.qkv_bias:
            q, k, v = q + self.q_bias[...], k + self.k_bias[...], v + self.v_bias[...]
        if c.qk_norm:
            q, k = rms_norm(q, self.q_norm[...], c.norm_eps), rms_norm(k, self.k_norm[...], c.norm_eps)
        frequencies = attention.rope_frequencies(c)
        q, k = attention.rope(q, positions_BT, frequencies), attention.rope(k, positions_BT, frequencies)
        return q.reshape(*q.shape[:2], c.n_kv_heads, -1, c.head_dim), k, v

    def finish(self, x_BTD, heads_BTGRE):
        """Output projection and gated MLP with their residuals."""
        heads_BTHE = heads_BTGRE.reshape(*x_BTD.shape[:2], -1, self.config.head_dim)
        x_BTD = x_BTD + jnp.einsum("bthe,dhe->btd", heads_BTHE, self.o[...])
        y_BTD = rms_norm(x_BTD, self.mlp_norm[...], self.config.norm_eps)
        gate_BTF, up_BTF = widen(y_BTD, self.gate[...]), widen(y_BTD, self.up[...])
        return x_BTD + jnp.einsum("btf,df->btd", jax.nn.silu(gate_BTF) * up_BTF, self.down[...])


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
    of_rows = lambda x_BTD: constrain(x_BTD, "batch", None, None)  # noqa: E731
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
