"""One transformer layer."""

import jax
import jax.numpy as jnp
from flax import nnx, struct

from iiblpo_jax.model import attention
from iiblpo_jax.model.config import ModelConfig


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


@struct.dataclass
class Matrix:
    """A linear map. Output and input may have several axes each: weight [*out, *in], out first.

    Attributes:
      weight: the entries.
      scale: [*out], undoes the quantisation of each output channel; None where there is none.
    """

    weight: jax.Array
    scale: jax.Array | None = None


@struct.dataclass
class Layer:
    """One transformer layer; stacked publications give every array a leading axis of all layers.

    A kv head and what belongs to it lie together: its R = H/G query heads, its key, its value. Copies of a kv head
    count as heads of their own: G is then C times that of the model.

    Attributes:
      attn_norm_D, mlp_norm_D: weights of the two RMSNorms.
      qkv: [G, R+2, E] of [D]; qkv_bias alike, [G, R+2, E], None without biases.
      qk_norm: RMSNorm weight of the R queries and the key of any kv head, [R+1, E]; None without.
      o: [D] of [G, R, E].
      gate_up: [2, F] of [D], gate first.
      down: [D] of [F].
    """

    attn_norm_D: jax.Array
    qkv: Matrix
    qkv_bias: jax.Array | None
    qk_norm: jax.Array | None
    o: Matrix
    mlp_norm_D: jax.Array
    gate_up: Matrix
    down: Matrix


def multiply(x: jax.Array, matrix: Matrix) -> jax.Array:
    """x [N, *in] times a matrix, float32 [N, *out], whatever the dtype of either."""
    weight, inputs = matrix.weight.astype(x.dtype), x.ndim - 1
    over = tuple(range(1, x.ndim)), tuple(range(weight.ndim - inputs, weight.ndim))
    product = jax.lax.dot_general(x, weight, (over, ((), ())), preferred_element_type=jnp.float32)
    return product if matrix.scale is None else product * matrix.scale
