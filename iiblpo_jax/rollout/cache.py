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

from iiblpo_jax.devices.mesh import constrain
from iiblpo_jax.model.attention import OFF
from iiblpo_jax.model.config import ModelConfig

SEGMENT = 256  # positions of the first segment; the second is as wide, each further one as all before it


class Cache(struct.PyTreeNode):
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
        k, v = (
            x if x.dtype == self.dtype else jax.lax.bitcast_convert_type(x, self.dtype)
            for x in (self.k[segment][layer], self.v[segment][layer])
        )
        return k, v


def to_store(x: jax.Array, dtype: str) -> jax.Array:
    """x in `dtype`, as bits where that is bfloat16."""
    x = x.astype(dtype)
    return jax.lax.bitcast_convert_type(x, jnp.uint16) if dtype == "bfloat16" else x


def empty_cache(config: ModelConfig, slots: int, capacity: int, dtype: str, *, unrolled: bool, kv_copies: int) -> Cache:
    """Zeroed caches of `capacity` positions a slot, for the layers and kv heads of a Published."""
    g, e, n = config.n_kv_heads * kv_copies, config.head_dim, config.n_layers
    widths = []
    while sum(widths) < capacity:
        widths.append(min(max(SEGMENT, sum(widths)), capacity - sum(widths)))

    def zeros(*shape):
        def one(*layers):
            axes = (*[None] * len(layers), None, "kv_heads", None, None)
            return constrain(to_store(jnp.zeros((*layers, *shape)), dtype), *axes)

        return [one() for _ in range(n)] if unrolled else one(n)

    return Cache(k=[zeros(slots, g, e, w) for w in widths], v=[zeros(slots, g, w, e) for w in widths], dtype=dtype)


def fill_prompts(cache: Cache, into_B: jax.Array, prompt_B, prompts: tuple[jax.Array, jax.Array]) -> Cache:
    """Copies the keys and values of prompt_B[b] (of `prefill`) into slot b where into_B[b]."""
    length = prompts[0].shape[-1]
    held = [(i, start, min(length, start + width)) for i, (start, width) in enumerate(cache.spans) if start < length]

    def fill(b, cache: Cache) -> Cache:
        new_k, new_v = (jax.lax.dynamic_index_in_dim(x, prompt_B[b], 1) for x in prompts)  # [L,1,...]
        k, v = list(cache.k), list(cache.v)
        for i, start, end in held:
            k[i] = _put_slot(k[i], new_k[..., start:end], b)
            v[i] = _put_slot(v[i], new_v[..., start:end, :], b)
        return cache.replace(k=k, v=v)

    return _for_each(into_B, fill, cache)


def copy_slots(cache: Cache, into_B: jax.Array, from_B) -> Cache:
    """Copies slot from_B[b] into slot b where into_B[b]; no slot is both."""

    def copy(b, cache: Cache) -> Cache:
        def one(stored):
            axis = 0 if isinstance(stored, list) else 1
            rows = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, from_B[b], axis), stored)
            return _put_slot(stored, rows, b)

        return cache.replace(k=[one(x) for x in cache.k], v=[one(x) for x in cache.v])

    return _for_each(into_B, copy, cache)


def _for_each(into_B: jax.Array, change, cache: Cache) -> Cache:
    """change(b, cache) for every b of into_B, one after the other: the cost is that of the slots that change."""
    slots_B = jnp.flatnonzero(into_B, size=into_B.shape[0], fill_value=0)
    return jax.lax.fori_loop(0, into_B.sum(), lambda i, cache: change(slots_B[i], cache), cache)


def _put_slot(stored, rows, b):
    """Overwrites the first positions of slot b; `rows` [L,1,...], or a list of [1,...]."""
    if isinstance(stored, list):
        return [jax.lax.dynamic_update_slice(x, row, (b, 0, 0, 0)) for x, row in zip(stored, rows, strict=True)]
    return jax.lax.dynamic_update_slice(stored, rows, (0, b, 0, 0, 0))


def write(cache: Cache, layer, position_B, k_BGE, v_BGE) -> Cache:
    """Writes one key and value a slot at position_B[b] of a layer."""
    k_BGE, v_BGE = to_store(k_BGE, cache.dtype), to_store(v_BGE, cache.dtype)
    k, v = list(cache.k), list(cache.v)
    for i, (start, width) in enumerate(cache.spans):
        # Positions of other segments go to a column that does not exist, and are dropped.
        column_B = jnp.where(position_B >= start, position_B - start, width)
        k[i] = _write_column(k[i], layer, column_B, k_BGE, (slice(None), slice(None)))
        v[i] = _write_column(v[i], layer, column_B, v_BGE, (slice(None),))
    return cache.replace(k=k, v=v)


def _write_column(stored, layer, column_B, new_BGE, before: tuple):
    """Sets stored[layer][b, *before, column_B[b]] of every slot b."""
    if isinstance(stored, list):  # mapped over slots, so that devices can each hold some
        put = jax.vmap(lambda x, column, new: x.at[(*before, column)].set(new, mode="drop"))
        return [*stored[:layer], put(stored[layer], column_B, new_BGE), *stored[layer + 1 :]]
    return stored.at[(layer, jnp.arange(column_B.shape[0]), *before, column_B)].set(new_BGE, mode="drop")


def attend(q_BGRE, cache: Cache, layer, position_B, longest, window: int | None) -> tuple[jax.Array, jax.Array]:
    """Softmax attention of one query a slot over the positions up to its own.

    Args:
      q_BGRE: queries; the R = H/G heads that share a kv head together.
      cache, layer: keys and values.
      position_B: where the query stands.
      longest: the last position that any slot whose output matters can see.
      window: positions the query looks back, itself included; None = all.

    Returns:
      Heads [B,G,R,E] and the log of the softmax's normaliser [B,G,R], both float32.
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

    carry = add(None, 0)
    for segment, (start, _) in list(enumerate(cache.spans))[1:]:
        carry = jax.lax.cond(longest >= start, functools.partial(add, segment=segment), lambda carry: carry, carry)
    top, total, out = carry
    return out / total[..., None], top + jnp.log(total)
