"""The policy as decoding wants it: one jitted program from training weights to a Published.

Training keeps layers stacked, in float32, with one matrix a projection. Decoding reads every weight once a token, so a
publication casts them, fuses q|k|v and gate|up into one matrix each and, by default, unstacks the layers (a scan would
slice every weight at every token). It may quantise the matrices to int8. Made once a step, reused by every rollout.

    int8    w[o, i] ~ scale[o] * q[o, i],  scale[o] = max_i |w[o, i]| / 127,  |error| <= scale[o] / 2

The product is (x @ q.T) * scale: the scale belongs to an output channel, hence comes out of the sum. The embedding is
quantised too, a row a token, so that a tied head stays one table. Norms and biases are not.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct

from iiblpo_jax.model.config import ModelConfig

INT8_MAX = 127.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublicationSpec:
    """Everything static about a publication; hashable.

    Attributes:
      model: architecture.
      dtype: of the computation, and of the weights unless they are quantised.
      weights: `` = dtype, or `int8`.
      unroll: layers as a list, which decoding unrolls; False = stacked, which decoding scans: slower, but compile time
        does not grow with depth.
    """

    model: ModelConfig
    dtype: str = "float32"
    weights: str = ""
    unroll: bool = True


@struct.dataclass
class Matrix:
    """A matrix [out, in]; `scale_O` undoes the quantisation of its rows, None where there is none."""

    weight_OI: jax.Array
    scale_O: jax.Array | None = None


@struct.dataclass
class Layer:
    """One transformer layer; stacked publications give every array a leading axis of all layers.

    Attributes:
      attn_norm_D, mlp_norm_D: weights of the two RMSNorms.
      qkv: [(H+2G)E, D], heads of q, then k, then v; qkv_bias_O alike, None without biases.
      qk_norm_HE: RMSNorm weight of every head of q and k, [H+G, E]; None without.
      o: [D, HE].
      gate_up: [2F, D], gate first.
      down: [D, F].
    """

    attn_norm_D: jax.Array
    qkv: Matrix
    qkv_bias_O: jax.Array | None
    qk_norm_HE: jax.Array | None
    o: Matrix
    mlp_norm_D: jax.Array
    gate_up: Matrix
    down: Matrix


@struct.dataclass
class Published:
    """A policy ready to decode.

    Attributes:
      embed: [V, D]; head: the same where they are tied, else None.
      layers: a list of L layers, or one stacked Layer.
      final_norm_D: weight of the last RMSNorm.
      dtype: name of the dtype of activations.
    """

    embed: Matrix
    head: Matrix | None
    layers: list[Layer] | Layer
    final_norm_D: jax.Array
    dtype: str = struct.field(pytree_node=False)

    @property
    def unrolled(self) -> bool:
        """Layers are a list."""
        return isinstance(self.layers, list)

    def stacked(self) -> Layer:
        """Layers with a leading axis of all L: what a full forward scans. A copy where they are a list."""
        return jax.tree.map(lambda *x: jnp.stack(x), *self.layers) if self.unrolled else self.layers


@functools.partial(jax.jit, static_argnames="spec")
def publish(params: dict, *, spec: PublicationSpec) -> Published:
    """The publication of a policy.

    Args:
      params: weights of a Decoder (`decoder.params_of`); not donated, training goes on with them.
      spec: static.
    """
    matrix = functools.partial(_matrix, spec=spec)
    stacked = params["layers"]
    if spec.unroll:
        of_layer = lambda i: jax.tree.map(lambda w: w[i], stacked)  # noqa: E731
        layers = [_layer(of_layer(i), spec, matrix) for i in range(spec.model.n_layers)]
    else:
        layers = jax.vmap(lambda weights: _layer(weights, spec, matrix))(stacked)
    return Published(
        embed=matrix(params["embed"]), head=None if spec.model.tied_embeddings else matrix(params["head"]),
        layers=layers, final_norm_D=params["final_norm"], dtype=spec.dtype,
    )  # fmt: skip


def _layer(w: dict, spec: PublicationSpec, matrix) -> Layer:
    c, d = spec.model, spec.model.d_model
    rows = lambda *names: jnp.concatenate([w[name].reshape(-1, d) for name in names])  # noqa: E731
    bias_O = qk_norm_HE = None
    if c.qkv_bias:
        bias_O = jnp.concatenate([w[name].reshape(-1) for name in ("q_bias", "k_bias", "v_bias")]).astype(spec.dtype)
    if c.qk_norm:
        of_heads = lambda norm_E, heads: jnp.broadcast_to(norm_E, (heads, c.head_dim))  # noqa: E731
        qk_norm_HE = jnp.concatenate([of_heads(w["q_norm"], c.n_heads), of_heads(w["k_norm"], c.n_kv_heads)])
    return Layer(
        attn_norm_D=w["attn_norm"], qkv=matrix(rows("q", "k", "v")), qkv_bias_O=bias_O, qk_norm_HE=qk_norm_HE,
        o=matrix(w["o"].reshape(d, -1)), mlp_norm_D=w["mlp_norm"], gate_up=matrix(rows("gate", "up")),
        down=matrix(w["down"]),
    )  # fmt: skip


def _matrix(weight_OI: jax.Array, *, spec: PublicationSpec) -> Matrix:
    return quantise(weight_OI) if spec.weights == "int8" else Matrix(weight_OI=weight_OI.astype(spec.dtype))


def quantise(weight_OI: jax.Array) -> Matrix:
    """Symmetric int8 with one float32 scale an output channel, rounded to nearest."""
    weight_OI = weight_OI.astype(jnp.float32)
    scale_O = jnp.abs(weight_OI).max(1) / INT8_MAX
    quantised_OI = jnp.round(weight_OI / jnp.where(scale_O > 0, scale_O, 1.0)[:, None])
    return Matrix(weight_OI=quantised_OI.astype(jnp.int8), scale_O=scale_O)


def multiply(x_NI: jax.Array, matrix: Matrix) -> jax.Array:
    """x @ W.T, float32 [N, out], whatever the dtype of either."""
    product_NO = jax.lax.dot_general(
        x_NI, matrix.weight_OI.astype(x_NI.dtype), (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
    )
    return product_NO if matrix.scale_O is None else product_NO * matrix.scale_O


def look_up(published: Published, tokens_N: jax.Array) -> jax.Array:
    """Embeddings [N, D] of token ids."""
    table = published.embed
    x_ND = table.weight_OI[tokens_N].astype(published.dtype)
    return x_ND if table.scale_O is None else (x_ND * table.scale_O[tokens_N][:, None]).astype(published.dtype)


def logits(published: Published, hidden_ND: jax.Array) -> jax.Array:
    """float32 logits [N, V] of final hidden states."""
    return multiply(hidden_ND, published.embed if published.head is None else published.head)
