"""The three kernels of pallas.py, for CUDA through Pallas' Triton backend: one program a tile and query head.

  forward_kernel          a tile of queries folds the key tiles that it sees into a running softmax
  query_gradient_kernel   a tile of queries adds up dq over the same key tiles
  key_gradient_kernel     a tile of keys adds up dk and dv over the query tiles that see it

A tile is a run of nodes that follow each other in a bin and in one row's sequence, described by four integers: row,
first node, first position, nodes. Softmaxes are taken to base 2, which the hardware has an instruction for.
"""

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from iiblpo_jax.model.attention import OFF

LOG2_E = math.log2(math.e)


def _tile(tiles_ref, x, size: int):
    """(row, nodes as a slice, position_Q, used_Q, first position, nodes in it) of tile x, which holds up to `size`."""
    row, node, position, count = (tiles_ref[x, i] for i in range(4))
    offset_Q = jnp.arange(size, dtype=jnp.int32)
    return row, pl.ds(node, size), position + offset_Q, offset_Q < count, position, count


def _load(ref, at, used_Q):
    """Rows `at` of a reference; zeros where the tile holds no node, which may lie outside the array."""
    used = used_Q if len(ref.shape) == 1 else used_Q[:, None]
    return plgpu.load(ref.at[at] if len(ref.shape) == 1 else ref.at[at, :], mask=used, other=0.0)


def _dot(a, b):
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _key_tiles(position, count, keys: int, window: int | None):
    """First and one past the last key tile that a query tile sees; none for an empty one."""
    last = jnp.where(count > 0, jax.lax.div(position + count - 1, keys) + 1, 0)
    first = 0 if window is None else jax.lax.div(jnp.maximum(position - window + 1, 0), keys)
    return first, last


def _seen(back, window: int | None):
    """Which keys a query sees that lie `back` positions before it."""
    return back >= 0 if window is None else (back >= 0) & (back < window)


def _scores(q_QE, k_SE, position_Q, start, window: int | None):
    """Masked scores [Q,S] to base 2 of the keys at positions from `start` on."""
    s_QS = _dot(q_QE, k_SE.T) * (q_QE.shape[1] ** -0.5 * LOG2_E)
    position_S = start + jnp.arange(k_SE.shape[0], dtype=jnp.int32)
    return jnp.where(_seen(position_Q[:, None] - position_S[None, :], window), s_QS, OFF)


def forward_kernel(q_ref, k_ref, v_ref, path_ref, tiles_ref, _, __, out_ref, norm_ref, *, queries, keys, window):
    """out [U,E] and norm [U] of one query head; refs are q, k, v [U,E], path [J,C], tiles [X,4], places of results."""
    row, at, position_Q, used_Q, position, count = _tile(tiles_ref, pl.program_id(1), queries)
    q_QE = _load(q_ref, at, used_Q)

    def fold(t, running):
        top_Q, total_Q, out_QE = running
        key_S = path_ref[row, pl.ds(t * keys, keys)]
        s_QS = _scores(q_QE, k_ref[key_S, :], position_Q, t * keys, window)
        new_top_Q = jnp.maximum(top_Q, s_QS.max(axis=1))
        p_QS, fade_Q = jnp.exp2(s_QS - new_top_Q[:, None]), jnp.exp2(top_Q - new_top_Q)
        v_SE = v_ref[key_S, :]
        out_QE = out_QE * fade_Q[:, None] + _dot(p_QS.astype(v_SE.dtype), v_SE)
        return new_top_Q, total_Q * fade_Q + p_QS.sum(axis=1), out_QE

    start = (
        jnp.full((queries,), OFF, jnp.float32),
        jnp.zeros((queries,), jnp.float32),
        jnp.zeros(q_QE.shape, jnp.float32),
    )
    top_Q, total_Q, out_QE = jax.lax.fori_loop(*_key_tiles(position, count, keys, window), fold, start)
    total_Q = jnp.maximum(total_Q, 1e-30)
    out_QE = out_QE / total_Q[:, None]
    plgpu.store(out_ref.at[at, :], out_QE.astype(out_ref.dtype), mask=used_Q[:, None])
    plgpu.store(norm_ref.at[at], top_Q / LOG2_E + jnp.log(total_Q), mask=used_Q)


def query_gradient_kernel(
    q_ref, k_ref, v_ref, path_ref, tiles_ref, d_ref, norm_ref, offset_ref, _, dq_ref, *, queries, keys, window
):
    """dq [U,E] of one query head; d is the gradient of out, offset [U] what is subtracted from every dp of a query."""
    row, at, position_Q, used_Q, position, count = _tile(tiles_ref, pl.program_id(1), queries)
    q_QE, d_QE = _load(q_ref, at, used_Q), _load(d_ref, at, used_Q)
    norm_Q, offset_Q = _load(norm_ref, at, used_Q) * LOG2_E, _load(offset_ref, at, used_Q)

    def add(t, dq_QE):
        key_S = path_ref[row, pl.ds(t * keys, keys)]
        k_SE = k_ref[key_S, :]
        p_QS = jnp.exp2(_scores(q_QE, k_SE, position_Q, t * keys, window) - norm_Q[:, None])
        ds_QS = p_QS * (_dot(d_QE, v_ref[key_S, :].T) - offset_Q[:, None])
        return dq_QE + _dot(ds_QS.astype(k_SE.dtype), k_SE)

    start = jnp.zeros(q_QE.shape, jnp.float32)
    dq_QE = jax.lax.fori_loop(*_key_tiles(position, count, keys, window), add, start) * q_QE.shape[1] ** -0.5
    plgpu.store(dq_ref.at[at, :], dq_QE.astype(dq_ref.dtype), mask=used_Q[:, None])


def key_gradient_kernel(
    q_ref,
    k_ref,
    v_ref,
    key_tiles_ref,
    query_tiles_ref,
    d_ref,
    norm_ref,
    offset_ref,
    seers_ref,
    number_ref,
    shared_ref,
    _,
    __,
    dk_ref,
    dv_ref,
    *,
    queries,
    keys,
    window,
):
    """dk, dv [U,E] that one query head contributes.

    seers [Y,X] lists the query tiles that see each key tile, number [Y] says how many they are, and shared [Y,J] how
    many of the tile's nodes, from its first on, are on each row's path.
    """
    y = pl.program_id(1)
    _, at_keys, position_S, used_S, first_key, _ = _tile(key_tiles_ref, y, keys)
    k_SE, v_SE = _load(k_ref, at_keys, used_S), _load(v_ref, at_keys, used_S)

    def add(i, totals):
        dk_SE, dv_SE = totals
        row, at, position_Q, used_Q, _, _ = _tile(query_tiles_ref, seers_ref[y, i], queries)
        q_QE, d_QE = _load(q_ref, at, used_Q), _load(d_ref, at, used_Q)
        norm_Q, offset_Q = _load(norm_ref, at, used_Q) * LOG2_E, _load(offset_ref, at, used_Q)
        s_SQ = _dot(k_SE, q_QE.T) * (q_QE.shape[1] ** -0.5 * LOG2_E)
        seen_SQ = _seen(position_Q[None, :] - position_S[:, None], window)
        seen_SQ &= (position_S < first_key + shared_ref[y, row])[:, None]
        p_SQ = jnp.exp2(jnp.where(seen_SQ, s_SQ, OFF) - norm_Q[None, :])
        dv_SE += _dot(p_SQ.astype(d_QE.dtype), d_QE)
        ds_SQ = p_SQ * (_dot(v_SE, d_QE.T) - offset_Q[None, :])
        return dk_SE + _dot(ds_SQ.astype(q_QE.dtype), q_QE), dv_SE

    zero_SE = jnp.zeros(k_SE.shape, jnp.float32)
    dk_SE, dv_SE = jax.lax.fori_loop(0, number_ref[y], add, (zero_SE, zero_SE))
    plgpu.store(dk_ref.at[at_keys, :], dk_SE * k_SE.shape[1] ** -0.5, mask=used_S[:, None])
    plgpu.store(dv_ref.at[at_keys, :], dv_SE, mask=used_S[:, None])
