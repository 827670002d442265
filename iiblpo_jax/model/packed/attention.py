"""Attention in packed bins: every query sees the keys of its own row's path (bins.py), and nothing else exists.

Keys and values are computed once a node. A block of queries belongs to one row; the keys of that row's path are
gathered tile by tile and folded into a running softmax (FlashAttention, arXiv 2205.14135), so neither the paths of all
rows nor the scores of all heads are ever held. Loops end at the last tile that a block can see. The backward pass
recomputes the scores from the log-normaliser and adds every tile's gradient to the nodes it came from.

Attending over a whole bin with a mask instead would score mostly pairs of unrelated trajectories.

This form runs on every backend; `implementation` chooses between it and the CUDA kernels of pallas.py.
"""

import functools

import jax
import jax.numpy as jnp

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.attention import OFF
from iiblpo_jax.model.packed.bins import Bin, part_of

KEY_TILE = 512  # keys gathered at once
SCORES_AT_ONCE = 2**25  # query-key pairs, over all heads, scored at once: 128 MiB of float32, to fill a device
SCORES_AT_ONCE_CPU = 2**19  # the same where they had better stay in the cache: half the time of 2**22


def implementation(name: str, head_dim: int):
    """The `path_attend` that attention.impl names.

    Args:
      name: `blocks` (here) or `pallas` (pallas.py).
      head_dim: E of the model.

    Raises:
      InputError: the kernel does not run on the devices of the program or with this head width.
    """
    if name == "blocks":
        return path_attend
    platform = meshes.platform()
    if platform == "tpu":
        raise InputError("attention.impl = pallas is a CUDA kernel and this is a TPU; use attention.impl=blocks")
    if platform == "gpu" and (head_dim < 16 or head_dim & (head_dim - 1)):
        raise InputError(
            f"attention.impl = pallas needs heads whose width is a power of two from 16 on, and the model's is "
            f"{head_dim}; use attention.impl=blocks"
        )
    from iiblpo_jax.model.packed import pallas as pallas_attention  # here, because the default needs no Pallas

    return pallas_attention.path_attend


def on_mesh(attend):
    """`path_attend`, or another of its kind, on the devices of the program being traced.

    Each has its own bins (mesh axes of `batch`) and kv heads (`tensor`). Along `sequence` it has a run of the queries
    and gathers all keys and values; their gradients are scattered back. What is left is local: no loop waits for the
    loop of another device.
    """
    mesh = meshes.current()
    if mesh is None:
        return attend

    def place(x, *axes):
        return meshes.partition(mesh, axes, shape=x.shape)

    sequence, parts = meshes.TRAIN["sequence"], meshes.shards(mesh, "sequence")

    def spread(q_WUGRE, k_WUGE, v_WUGE, bins: Bin, block: int, window: int | None):
        def local(q, k, v, bins):
            if parts > 1:
                k, v = (jax.lax.all_gather(x, sequence, axis=1, tiled=True) for x in (k, v))
                bins = part_of(bins, jax.lax.axis_index(sequence), parts)
            return attend(q, k, v, bins, block, window)

        queries, keys = (place(x, "batch", "sequence", "kv_heads") for x in (q_WUGRE, k_WUGE))
        whole = jax.tree.map(lambda x: place(x, "batch"), bins)
        return jax.shard_map(
            local, mesh=mesh, in_specs=(queries, keys, keys, whole), out_specs=(queries, queries), check_vma=False
        )(q_WUGRE, k_WUGE, v_WUGE, bins)

    return spread


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def path_attend(q_WUGRE, k_WUGE, v_WUGE, bins: Bin, block: int, window: int | None):
    """Causal attention along paths.

    Args:
      q_WUGRE: queries of the nodes of W bins.
      k_WUGE, v_WUGE: their keys and values.
      bins: W bins, stacked.
      block: Q, queries a block (PackSpec.block).
      window: positions a query looks back, itself included; None = all.

    Returns:
      out [W,U,G,R,E] in the dtype of v, and the log of the softmax's normaliser [W,U,G,R], float32, which lets a
      pseudo position be merged afterwards. Both differentiable in q, k, v. Nodes of no row give zeros.
    """
    return _forward(q_WUGRE, k_WUGE, v_WUGE, bins, block, window)[0]


def _rows(x_WU, index_WI):
    """x[w, index[w]] for index [W, ...]; zeros where the index is U."""
    return jax.vmap(lambda x, i: x.at[i].get(mode="fill", fill_value=0))(x_WU, index_WI)


def _add_rows(x_WU, index_WI, values):
    return jax.vmap(lambda x, i, v: x.at[i].add(v, mode="drop"))(x_WU, index_WI, values)


class _Blocks:
    """Which queries and keys the loops take together. Block arrays are padded to a whole number of chunks."""

    def __init__(self, bins: Bin, block: int, window: int | None, q_WUGRE):
        w, u, g, r, _ = q_WUGRE.shape
        self.block, self.window, self.nowhere = block, window, u
        self.tile = min(KEY_TILE, bins.path_JC.shape[-1])
        blocks = bins.block_row_X.shape[1]
        at_once = SCORES_AT_ONCE_CPU if meshes.platform() == "cpu" else SCORES_AT_ONCE
        self.chunk = min(blocks, max(1, at_once // (w * g * r * block * self.tile)))
        self.padded = -(-blocks // self.chunk) * self.chunk

        def grow(x_WX):
            return jnp.pad(x_WX, [(0, 0), (0, self.padded - blocks)])

        self.row, self.node = grow(bins.block_row_X), grow(bins.block_node_X)
        self.position, self.count = grow(bins.block_position_X), grow(bins.block_count_X)
        tiles = -(-bins.path_JC.shape[-1] // self.tile)
        short, past = tiles * self.tile - bins.path_JC.shape[-1], bins.token_U.shape[-1]
        self.path_WJC = jnp.pad(bins.path_JC, [(0, 0), (0, 0), (0, short)], constant_values=past)
        # Used blocks come first in every bin, so a loop to the fullest bin's last one leaves out only empty ones. The
        # number is data: the loops are while_loops, and an update of short responses does not pay for long ones.
        self.chunks = -(-jnp.sum(self.count > 0, axis=1).max() // self.chunk)

    def queries(self, c):
        """(row [W,x], node [W,x,Q] or U, position [W,x,Q]) of the queries of chunk c."""

        def cut(x_WX):
            return jax.lax.dynamic_slice_in_dim(x_WX, c * self.chunk, self.chunk, axis=1)

        offset_Q = jnp.arange(self.block)
        used_WxQ = offset_Q < cut(self.count)[..., None]
        node_WxQ = jnp.where(used_WxQ, cut(self.node)[..., None] + offset_Q, self.nowhere)
        return cut(self.row), node_WxQ, jnp.where(used_WxQ, cut(self.position)[..., None] + offset_Q, -1)

    def tiles(self, position_WxQ):
        """Tiles that these queries can see: first and one past the last."""
        last = position_WxQ.max() // self.tile + 1
        if self.window is None:
            return 0, last
        earliest = jnp.where(position_WxQ >= 0, position_WxQ, jnp.iinfo(jnp.int32).max).min()
        return jnp.maximum(earliest - self.window + 1, 0) // self.tile, last

    def keys(self, row_Wx, t):
        """Nodes [W,x,S] of tile t of each block's path."""
        path_WJS = jax.lax.dynamic_slice_in_dim(self.path_WJC, t * self.tile, self.tile, axis=2)
        return _rows(path_WJS, row_Wx)

    def scores(self, q, k, position_WxQ, t):
        """Masked scores [W,x,G,R,Q,S], float32."""
        s = jnp.einsum("wxqgre,wxsge->wxgrqs", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
        back_WxQS = position_WxQ[..., None] - (t * self.tile + jnp.arange(self.tile))
        seen_WxQS = (back_WxQS >= 0) & (back_WxQS < (self.window or jnp.iinfo(jnp.int32).max))
        return jnp.where(seen_WxQS[:, :, None, None], s, OFF)

    def empty(self, like_WU):
        """A place [W, padded blocks, Q, ...] for one result a query."""
        return jnp.zeros((like_WU.shape[0], self.padded, self.block, *like_WU.shape[2:]), like_WU.dtype)

    def put(self, place, c, values):
        return jax.lax.dynamic_update_slice_in_dim(place, values.astype(place.dtype), c * self.chunk, axis=1)

    def by_node(self, place, bins: Bin):
        """[W,U,...] from [W, padded blocks, Q, ...]; zeros at nodes of no row."""
        flat = place.reshape(place.shape[0], -1, *place.shape[3:])
        first_WX, used_WX = self.node, self.count > 0
        start_WX = jnp.where(used_WX, first_WX, self.nowhere)
        node_U = jnp.arange(self.nowhere)
        block_WU = jax.vmap(lambda s: jnp.searchsorted(s, node_U, side="right"))(start_WX) - 1
        offset_WU = node_U - jnp.take_along_axis(start_WX, block_WU, axis=1)
        inside_WU = offset_WU < jnp.take_along_axis(self.count, block_WU, axis=1)
        return _rows(flat, jnp.where(inside_WU, block_WU * self.block + offset_WU, flat.shape[1]))


def _forward(q_WUGRE, k_WUGE, v_WUGE, bins: Bin, block: int, window: int | None):
    b = _Blocks(bins, block, window, q_WUGRE)

    def chunk(c, results):
        row_Wx, node_WxQ, position_WxQ = b.queries(c)
        q = _rows(q_WUGRE, node_WxQ)
        shape = (*row_Wx.shape, *q.shape[3:5], block)

        # The running softmax: scores are never held for more than a tile, and what has been summed is rescaled when a
        # later tile has a larger score. Sums stay float32 whatever the dtype of the values.
        def tile(t, running):
            top, total, out = running
            at_WxS = b.keys(row_Wx, t)
            s = b.scores(q, _rows(k_WUGE, at_WxS), position_WxQ, t)
            new_top = jnp.maximum(top, s.max(-1))
            p, fade = jnp.exp(s - new_top[..., None]), jnp.exp(top - new_top)
            new = jnp.einsum(
                "wxgrqs,wxsge->wxgrqe",
                p.astype(v_WUGE.dtype),
                _rows(v_WUGE, at_WxS),
                preferred_element_type=jnp.float32,
            )
            return new_top, total * fade + p.sum(-1), out * fade[..., None] + new

        start = (jnp.full(shape, OFF), jnp.zeros(shape), jnp.zeros((*shape, q.shape[-1])))
        top, total, out = jax.lax.fori_loop(*b.tiles(position_WxQ), tile, start)
        out = (out / jnp.maximum(total, 1e-30)[..., None]).transpose(0, 1, 4, 2, 3, 5)
        norm = (top + jnp.log(jnp.maximum(total, 1e-30))).transpose(0, 1, 4, 2, 3)
        return b.put(results[0], c, out), b.put(results[1], c, norm)

    empty = b.empty(q_WUGRE.astype(v_WUGE.dtype)), b.empty(q_WUGRE[..., 0].astype(jnp.float32))
    out, norm = jax.lax.fori_loop(0, b.chunks, chunk, empty)
    out, norm = b.by_node(out, bins), b.by_node(norm, bins)
    return (out, norm), (q_WUGRE, k_WUGE, v_WUGE, bins, out, norm)


def _backward(block: int, window: int | None, saved, gradients):
    q_WUGRE, k_WUGE, v_WUGE, bins, out, norm = saved
    d_out, d_norm = gradients
    b = _Blocks(bins, block, window, q_WUGRE)
    scale = q_WUGRE.shape[-1] ** -0.5
    # d s = p * (dp - sum(d_out * out) + d_norm); the last two are one number a query and head.
    offset_WUGR = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1) - d_norm

    def chunk(c, totals):
        dq, dk, dv = totals
        row_Wx, node_WxQ, position_WxQ = b.queries(c)
        q, d = _rows(q_WUGRE, node_WxQ), _rows(d_out, node_WxQ)

        def by_head(x_WUGR):
            return _rows(x_WUGR, node_WxQ).transpose(0, 1, 3, 4, 2)[..., None]

        norm_x, offset_x = by_head(norm), by_head(offset_WUGR)

        def tile(t, totals):
            dq_x, dk, dv = totals
            at_WxS = b.keys(row_Wx, t)
            k, v = _rows(k_WUGE, at_WxS), _rows(v_WUGE, at_WxS)
            p = jnp.exp(b.scores(q, k, position_WxQ, t) - norm_x)  # recomputed: to keep them would be [paths, T, C]
            dp = jnp.einsum("wxqgre,wxsge->wxgrqs", d, v, preferred_element_type=jnp.float32)
            ds = (p * (dp - offset_x) * scale).astype(k.dtype)
            dq_x += jnp.einsum("wxgrqs,wxsge->wxqgre", ds, k, preferred_element_type=jnp.float32)
            dk_x = jnp.einsum("wxgrqs,wxqgre->wxsge", ds, q, preferred_element_type=jnp.float32)
            dv_x = jnp.einsum("wxgrqs,wxqgre->wxsge", p.astype(d.dtype), d, preferred_element_type=jnp.float32)
            return dq_x, _add_rows(dk, at_WxS, dk_x), _add_rows(dv, at_WxS, dv_x)

        dq_x, dk, dv = jax.lax.fori_loop(*b.tiles(position_WxQ), tile, (jnp.zeros(q.shape), dk, dv))
        return b.put(dq, c, dq_x), dk, dv

    # Every query belongs to one block, so dq is put in place; a node is a key of many paths, so dk and dv are added up,
    # in float32: a prefix collects the gradient of all rows that share it.
    start = (b.empty(q_WUGRE.astype(jnp.float32)), jnp.zeros(k_WUGE.shape), jnp.zeros(v_WUGE.shape))
    dq, dk, dv = jax.lax.fori_loop(0, b.chunks, chunk, start)
    return b.by_node(dq, bins).astype(q_WUGRE.dtype), dk.astype(k_WUGE.dtype), dv.astype(v_WUGE.dtype), None


path_attend.defvjp(_forward, _backward)
