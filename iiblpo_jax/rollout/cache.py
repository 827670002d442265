"""Keys and values of all slots: how they are laid out, filled, copied, written and attended to.

Positions are cut into segments of doubling width, arrays of their own, and a step skips the segments behind its longest
live slot: it reads at most twice what is filled. (A loop over blocks of one array would have to slice, which copies.)
Keys are stored position last ([E, W]) and values position first ([W, E]): each product then reads its operand along the
contiguous axis.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct

from iiblpo_jax.model.attention import OFF
from iiblpo_jax.model.config import ModelConfig

SEGMENT = 256  # positions of the first segment; the second is as wide, each further one as all before it


@struct.dataclass
class Cache:
    """Position c of slot b is column c - start of the segment that begins at start <= c.

    Attributes:
      k: k[i] are the keys of segment i, [B,G,E,W] a layer: a list of L arrays, or one array with a leading axis of L.
      v: likewise the values, [B,G,W,E].
      dtype: name of the dtype of keys and values. bfloat16 is held as its bits: XLA on CPU would convert a whole cache
        to float32 and back to move a part of it.
    """

    k: list[list[jax.Array] | jax.Array]
    v: list[list[jax.Array] | jax.Array]
    dtype: str = struct.field(pytree_node=False)

    @property
    def spans(self) -> list[tuple[int, int]]:
        """(first position, width) of every segment."""
        widths = [k[0].shape[-1] for k in self.k]
        return [(sum(widths[:i]), width) for i, width in enumerate(widths)]

    def read(self, layer, segment: int) -> tuple[jax.Array, jax.Array]:
        """Keys [B,G,E,W] and values [B,G,W,E] of a segment of a layer."""
        stored = self.k[segment][layer], self.v[segment][layer]
        return tuple(x if x.dtype == self.dtype else jax.lax.bitcast_convert_type(x, self.dtype) for x in stored)


def to_store(x: jax.Array, dtype: str) -> jax.Array:
    """x in `dtype`, as bits where that is bfloat16."""
    x = x.astype(dtype)
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if dtype == "bfloat16" else x


def empty_cache(config: ModelConfig, slots: int, capacity: int, dtype: str, *, unrolled: bool) -> Cache:
    """Zeroed caches of `capacity` positions a slot."""
    g, e, n = config.n_kv_heads, config.head_dim, config.n_layers
    widths = []
    while sum(widths) < capacity:
        widths.append(min(max(SEGMENT, sum(widths)), capacity - sum(widths)))

    def zeros(*shape):
        one = lambda *shape: to_store(jnp.zeros(shape), dtype)  # noqa: E731
        return [one(*shape) for _ in range(n)] if unrolled else one(n, *shape)

    return Cache(
        k=[zeros(slots, g, e, w) for w in widths], v=[zeros(slots, g, w, e) for w in widths], dtype=dtype
    )  # fmt: skip


def _each_layer(f, stored, *stacked):
    """f(of the cache, *of the others) for every layer; `stacked` have a leading axis of L."""
    if isinstance(stored, list):
        return [f(x, *(y[i] for y in stacked)) for i, x in enumerate(stored)]
    return jax.vmap(f)(stored, *stacked)


def fill_prompts(cache: Cache, into_B, prompt_B, prompts: tuple[jax.Array, jax.Array]) -> Cache:
    """Copies the keys and values of prompt_B[b] (of `prefill`) into slot into_B[b]; B there = nowhere."""
    k, v, (k_LPGES, v_LPGSE) = [], [], prompts
    for (start, width), old_k, old_v in zip(cache.spans, cache.k, cache.v, strict=True):
        mine = slice(start, start + width)
        n = k_LPGES[..., mine].shape[-1]
        put_k = lambda old, new, n=n: old.at[into_B, :, :, :n].set(new[prompt_B], mode="drop")  # noqa: E731
        put_v = lambda old, new, n=n: old.at[into_B, :, :n].set(new[prompt_B], mode="drop")  # noqa: E731
        k.append(_each_layer(put_k, old_k, k_LPGES[..., mine]) if n else old_k)
        v.append(_each_layer(put_v, old_v, v_LPGSE[..., mine, :]) if n else old_v)
    return cache.replace(k=k, v=v)


def copy_slots(cache: Cache, into_B, from_B) -> Cache:
    """Copies slot from_B[b] into slot into_B[b]; B there = nowhere."""
    copy = functools.partial(_each_layer, lambda x: x.at[into_B].set(x[from_B], mode="drop"))
    return cache.replace(k=[copy(x) for x in cache.k], v=[copy(x) for x in cache.v])


def write(cache: Cache, layer, position_B, k_BGE, v_BGE) -> Cache:
    """Writes one key and value a slot at position_B[b] of a layer."""
    k_BGE, v_BGE = to_store(k_BGE, cache.dtype), to_store(v_BGE, cache.dtype)
    slots_B, k, v = jnp.arange(position_B.shape[0]), [], []
    for (start, width), old_k, old_v in zip(cache.spans, cache.k, cache.v, strict=True):
        # Positions of other segments go to a column that does not exist, and are dropped.
        column_B = jnp.where(position_B >= start, position_B - start, width)
        if isinstance(old_k, list):
            put_k = old_k[layer].at[slots_B, :, :, column_B].set(k_BGE, mode="drop")
            put_v = old_v[layer].at[slots_B, :, column_B].set(v_BGE, mode="drop")
            k.append([*old_k[:layer], put_k, *old_k[layer + 1 :]])
            v.append([*old_v[:layer], put_v, *old_v[layer + 1 :]])
        else:
            k.append(old_k.at[layer, slots_B, :, :, column_B].set(k_BGE, mode="drop"))
            v.append(old_v.at[layer, slots_B, :, column_B].set(v_BGE, mode="drop"))
    return cache.replace(k=k, v=v)


def attend(q_BGRE, cache: Cache, layer, position_B, longest, pseudo, window: int | None) -> jax.Array:
    """Softmax attention of one query a slot over the positions up to its own and its pseudo position.

    Args:
      q_BGRE: queries; the R = H/G heads that share a kv head together.
      cache, layer: keys and values.
      position_B: where the query stands.
      longest: the last position that any slot whose output matters can see.
      pseudo: (k_BGE, v_BGE, bias_B) of the pseudo position, bias OFF where z is off; or None.
      window: positions the query looks back, itself included; None = all.

    Returns:
      float32 [B,G,R,E].
    """
    scale = q_BGRE.shape[-1] ** -0.5

    def add(carry, segment: int):
        """Merges a segment into (largest score, sum of weights, weighted sum of values)."""
        k_BGEW, v_BGWE = cache.read(layer, segment)
        q = q_BGRE.astype(cache.dtype)
        s_BGRW = jnp.einsum("bgre,bgew->bgrw", q, k_BGEW, preferred_element_type=jnp.float32) * scale
        start, width = cache.spans[segment]
        back_BW = position_B[:, None] - (start + jnp.arange(width))
        seen_BW = (back_BW >= 0) if window is None else (back_BW >= 0) & (back_BW < window)
        s_BGRW = jnp.where(seen_BW[:, None, None], s_BGRW, OFF)
        top = s_BGRW.max(-1) if carry is None else jnp.maximum(carry[0], s_BGRW.max(-1))
        p_BGRW = jnp.exp(s_BGRW - top[..., None])
        out = jnp.einsum("bgrw,bgwe->bgre", p_BGRW.astype(v_BGWE.dtype), v_BGWE, preferred_element_type=jnp.float32)
        total = p_BGRW.sum(-1)
        if carry is None:
            return top, total, out
        fade = jnp.exp(carry[0] - top)
        return top, carry[1] * fade + total, carry[2] * fade[..., None] + out

    carry = None
    if pseudo is not None:
        k_BGE, v_BGE, bias_B = pseudo
        score = (q_BGRE.astype(jnp.float32) * k_BGE[:, :, None]).sum(-1) * scale + bias_B[:, None, None]
        carry = score, jnp.ones_like(score), jnp.broadcast_to(v_BGE[:, :, None], q_BGRE.shape).astype(jnp.float32)
    carry = add(carry, 0)
    for segment, (start, _) in list(enumerate(cache.spans))[1:]:
        carry = jax.lax.cond(longest >= start, functools.partial(add, segment=segment), lambda carry: carry, carry)
    _, total, out = carry
    return out / total[..., None]
