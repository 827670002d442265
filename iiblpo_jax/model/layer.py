"""One transformer layer: training, packed rows, prefill and decoding run this one, over weights of one layout.

    x -> norm (+ gain) -> q, k, v -> rope -> attention (+ pseudo position) -> o, + x -> norm -> gated MLP, + x

What differs between the four is where keys come from, and each brings its own `attend` for that. `Inject` is the only
way in for a latent z: a gain for the first norm, and one more position to attend to.

Weights are fused as decoding reads them, q|k|v into one matrix and gate|up into another, and a kv head and what belongs
to it lie together: the mesh axis `tensor` cuts between kv heads, never through one. Linear weights are stored [out, in]
as Hugging Face stores them: skinny decode matmuls read them contiguously.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx, struct

from iiblpo_jax.model.attention import Pseudo, rotate
from iiblpo_jax.model.config import ModelConfig

# Logical axes (mesh.py) of every weight of a layer.
AXES = {
    "attn_norm": ("norm",),
    "qkv": ("kv_heads", None, "head", "embed"),
    "qkv_bias": ("kv_heads", None, "head"),
    "qk_norm": (None, "norm"),
    "o": ("embed", "kv_heads", None, "head"),
    "mlp_norm": ("norm",),
    "gate_up": (None, "mlp", "embed"),
    "down": ("embed", "mlp"),
}
INPUTS = {"qkv": 1, "o": 3, "gate_up": 1, "down": 1}  # the matrices, and how many axes of each are its input


@struct.dataclass
class Matrix:
    """A linear map. Output and input may have several axes each: weight [*out, *in], out first.

    Attributes:
      weight: the entries.
      scale: [*out], undoes the quantisation of each output channel; None where there is none.
      inputs: axes of the input.
      delta: what is added to the product (adapters/lora.py); None where nothing is.
    """

    weight: jax.Array
    scale: jax.Array | None = None
    inputs: int = struct.field(pytree_node=False, default=1)
    delta: "Delta | None" = None


class Delta(Protocol):
    """What is added to the product of a Matrix; a pytree."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """float32 [..., *out] of x [..., *in]."""
        ...

    def weight(self) -> jax.Array:
        """The same as entries [*out, *in] to add to those of the matrix."""
        ...


class Layer(struct.PyTreeNode):
    """The weights of one layer; stacked, every array has a leading axis of all L layers.

    R = H/G query heads share a kv head. Copies of a kv head (publication.py) count as heads of their own: G is then C
    times that of the model.

    Attributes:
      attn_norm, mlp_norm: weights [D] of the two RMSNorms.
      qkv: [G, R+2, E] of [D]; qkv_bias alike, [G, R+2, E], None without biases.
      qk_norm: RMSNorm weights of every query and of every key, [2, E]; None without.
      o: [D] of [G, R, E].
      gate_up: [2, F] of [D], gate first.
      down: [D] of [F].
    """

    attn_norm: jax.Array
    qkv: Matrix
    qkv_bias: jax.Array | None
    qk_norm: jax.Array | None
    o: Matrix
    mlp_norm: jax.Array
    gate_up: Matrix
    down: Matrix


class Inject(Protocol):
    """What steers a forward (steering/psa.py).

    Attributes:
      layers: a pytree with a leading axis of all L layers, or, where layers are unrolled, of the last ones alone.
    """

    layers: Any

    def at(self, layer: Any) -> tuple[jax.Array, Pseudo]:
        """The gain [..., D] of every token and its pseudo position, from one layer of `layers`."""
        ...


class LayerStack(nnx.Module):
    """The trainable weights of L layers: what `Layer` holds, as nnx.Params named alike."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        c, n = config, config.n_layers
        d, f, e, g, r = c.d_model, c.d_ff, c.head_dim, c.n_kv_heads, c.n_heads // c.n_kv_heads

        def draw(*shape, inputs=1):
            return jax.random.normal(rngs.params(), (n, *shape)) * math.prod(shape[-inputs:]) ** -0.5

        def param(name, weight):
            setattr(self, name, nnx.Param(weight, axes=("layers", *AXES[name])))

        param("attn_norm", jnp.ones((n, d)))
        param("qkv", fuse_qkv(*(draw(heads, e, d) for heads in (g * r, g, g))))
        param("o", draw(d, g, r, e, inputs=3))
        if c.qkv_bias:
            param("qkv_bias", jnp.zeros((n, g, r + 2, e)))
        if c.qk_norm:
            param("qk_norm", jnp.ones((n, 2, e)))
        param("mlp_norm", jnp.ones((n, d)))
        param("gate_up", jnp.stack([draw(f, d), draw(f, d)], axis=1))
        param("down", draw(d, f))

    def stacked(self) -> Layer:
        """The weights as a stacked Layer."""
        return layer_of({name: getattr(self, name)[...] for name in AXES if hasattr(self, name)})


def fuse_qkv(q_LH, k_LG, v_LG) -> jax.Array:
    """[L,H, ...] and twice [L,G, ...] as [L,G,R+2, ...]."""
    q_LGR = q_LH.reshape(*k_LG.shape[:2], -1, *q_LH.shape[2:])
    return jnp.concatenate([q_LGR, k_LG[:, :, None], v_LG[:, :, None]], axis=2)


def layer_of(weights: dict) -> Layer:
    """A Layer, stacked or not, from arrays, or Matrix objects, by name; absent biases and norms are None."""

    def matrix(name: str, inputs: int) -> Matrix:
        weight = weights[name]
        return weight if isinstance(weight, Matrix) else Matrix(weight=weight, inputs=inputs)

    matrices: dict[str, Any] = {name: matrix(name, inputs) for name, inputs in INPUTS.items()}
    parts: dict[str, Any] = dict.fromkeys(AXES) | weights | matrices
    return Layer(**parts)


# -- the forward ------------------------------------------------------------------------------------------------------


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) * weight over the last axis, statistics in float32, result in the dtype of x."""
    x32 = x.astype(jnp.float32)
    x32 *= jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    return (x32 * weight).astype(x.dtype)


def multiply(x: jax.Array, matrix: Matrix) -> jax.Array:
    """x [..., *in] times a matrix, float32 [..., *out], whatever the dtype of either."""
    product: jax.Array = _product(x, matrix.weight, matrix.inputs)
    product = product if matrix.scale is None else product * matrix.scale
    return product if matrix.delta is None else product + matrix.delta(x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x, weight, inputs: int):
    """x [..., *in] @ weight [*out, *in], whose weight gradient is made as [*in, *out] where out is the wider side.

    A matmul that sums over leading axes transposes its first operand, and XLA on CPU fuses what made that operand into
    the copy: for the wide side this was the gradient of the gated unit, read against its grain, a fifth of an update.

    A weight in another dtype than x is cast here, so that the backward pass keeps it as it is stored: a copy of a
    frozen int8 matrix in the dtype of x would be kept for every layer. Integers have no gradient.
    """
    over = tuple(range(x.ndim - inputs, x.ndim)), tuple(range(weight.ndim - inputs, weight.ndim))
    return jax.lax.dot_general(x, weight.astype(x.dtype), (over, ((), ())), preferred_element_type=jnp.float32)


def _product_forward(x, weight, inputs):
    return _product(x, weight, inputs), (x, weight)


def _product_backward(inputs, saved, d_out):
    d_x, d_weight = _gradients(saved[0], saved[1].astype(saved[0].dtype), inputs, d_out)
    return d_x, d_weight.astype(saved[1].dtype) if jnp.issubdtype(saved[1].dtype, jnp.inexact) else None


def _gradients(x, weight, inputs, d_out):
    d, outputs, rows = d_out.astype(x.dtype), weight.ndim - inputs, tuple(range(x.ndim - inputs))

    def dot(a, b, over_a, over_b):
        return jax.lax.dot_general(a, b, ((over_a, over_b), ((), ())))

    d_x = dot(d, weight, tuple(range(len(rows), d.ndim)), tuple(range(outputs)))
    if math.prod(weight.shape[:outputs]) <= math.prod(weight.shape[outputs:]):
        return d_x, dot(d, x, rows, rows)
    d_weight = dot(x, d, rows, rows)
    return d_x, d_weight.transpose(*range(inputs, weight.ndim), *range(inputs))


_product.defvjp(_product_forward, _product_backward)


def qkv(layer: Layer, x: jax.Array, table, config: ModelConfig, gain: jax.Array | None = None):
    """Norm, project, rotate.

    Args:
      layer: weights.
      x: residual stream [..., D].
      table: `rope_table` of the tokens' positions [...].
      config: architecture.
      gain: [..., D], added to the norm's weight; None = nothing.

    Returns:
      q [...,G,R,E], k and v [...,G,E].
    """
    norm = layer.attn_norm if gain is None else layer.attn_norm + gain
    heads_GME = multiply(rms_norm(x, norm, config.norm_eps), layer.qkv).astype(x.dtype)  # M = R + 2
    if layer.qkv_bias is not None:
        heads_GME += layer.qkv_bias
    qk_GME, v_GE = heads_GME[..., :-1, :], heads_GME[..., -1, :]
    if layer.qk_norm is not None:
        is_key_M1 = jnp.arange(qk_GME.shape[-2])[:, None] == qk_GME.shape[-2] - 1
        qk_GME = rms_norm(qk_GME, jnp.where(is_key_M1, layer.qk_norm[1], layer.qk_norm[0]), config.norm_eps)
    qk_GME = rotate(qk_GME, tuple(x[..., None, :] for x in table))
    return qk_GME[..., :-1, :], qk_GME[..., -1, :], v_GE


def finish(layer: Layer, x: jax.Array, heads_GRE: jax.Array, config: ModelConfig) -> jax.Array:
    """Output projection and gated MLP with their residuals: [..., D] from [..., D] and [...,G,R,E]."""
    x = x + multiply(heads_GRE, layer.o).astype(x.dtype)
    y = rms_norm(x, layer.mlp_norm, config.norm_eps)
    gate_up_2F = multiply(y, layer.gate_up).astype(x.dtype)
    return x + multiply(jax.nn.silu(gate_up_2F[..., 0, :]) * gate_up_2F[..., 1, :], layer.down).astype(x.dtype)


def run_layer(
    layer: Layer,
    x: jax.Array,
    table,
    config: ModelConfig,
    attend: Callable,
    steer: tuple[jax.Array, Pseudo] | None = None,
    finish: Callable = finish,
) -> tuple[jax.Array, Any]:
    """One layer.

    Args:
      layer: weights.
      x: residual stream [..., D].
      table: `rope_table` of the tokens' positions [...].
      config: architecture.
      attend: (q [...,G,R,E], k [...,G,E], v [...,G,E]) -> (heads [...,G,R,E], log of the softmax's normaliser
        [...,G,R], whatever the caller wants to keep).
      steer: gain and pseudo position, of `Inject.at`; None = the plain layer, bit for bit that with z off everywhere.
      finish: `finish`, or the same in pieces.

    Returns:
      The new residual stream, and what `attend` keeps.
    """
    gain, pseudo = (None, None) if steer is None else steer
    q_GRE, k_GE, v_GE = qkv(layer, x, table, config, gain)
    heads_GRE, norm_GR, kept = attend(q_GRE, k_GE, v_GE)
    if pseudo is not None:
        heads_GRE = pseudo.merge(q_GRE, heads_GRE, norm_GR)
    return finish(layer, x, heads_GRE.astype(x.dtype), config), kept
