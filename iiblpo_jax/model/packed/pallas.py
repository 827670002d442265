"""`path_attend` as CUDA kernels (pallas_kernels.py): keys and values are read through the path, none is copied.

The plain form (attention.py) gathers every key tile into memory before it multiplies. Here a program holds a tile
of one head's queries, reads the nodes of a key tile from the path and the rows of k and v at those nodes, and stops at
the last tile that it sees (FlashAttention-2, arXiv 2307.08691).

A node is a key of many rows, so its gradient has many contributors. Rather than adding them with atomics, whose order
differs from run to run, a second kernel takes tiles of keys: nodes of a tile that are on a row's path are its first
ones, because paths are those of a tree, so one number a (tile, row) says who sees what, and a list a tile which query
tiles to visit. Every sum then has one order, and the result is the same bits each time. Each query head writes its own
dk and dv, in float32; they are summed over the heads that share a kv head afterwards.

State: run in Pallas' interpret mode, lowered for CUDA, and the lowered kernels compiled for two GPU generations; not
run or timed on a GPU. On a CPU the kernels are interpreted: right and slow, for tests. JAX 0.11 calls its Triton
backend deprecated and still has it.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.custom_partitioning import custom_partitioning
from jax.experimental.pallas import triton as plgpu
from jax.sharding import NamedSharding, PartitionSpec

from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.packed.bins import Bin
from iiblpo_jax.model.packed.kernels import forward_kernel, key_gradient_kernel, query_gradient_kernel

# Nodes of a tile; half of them where a head's row takes more than WIDE bytes. Compiled for compute capability 8.0 and
# 9.0, no register spills and a program takes at most 97 KiB of shared memory.
QUERIES = 128
QUERIES_BACKWARD = 64
KEYS = 64
WIDE = 256


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def path_attend(q_WUGRE, k_WUGE, v_WUGE, bins: Bin, block: int, window: int | None):
    """Causal attention along paths: arguments and results of `path_attention.path_attend`.

    On a GPU, E must be a power of two from 16 on. Over several devices, W and G may be split.
    """
    return _forward(q_WUGRE, k_WUGE, v_WUGE, bins, block, window)[0]


def _forward(q, k, v, bins, block, window):
    out, norm = _attend(q, k, v, *_layout(bins), block, window)
    return (out, norm), (q, k, v, bins, out, norm)


def _backward(block, window, saved, gradients):
    q, k, v, bins, out, norm = saved
    d_out, d_norm = gradients
    # d s = p * (dp - sum(d_out * out) + d_norm); the last two are one number a query and head.
    offset = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1) - d_norm
    return *_gradients(q, k, v, *_layout(bins), d_out, norm, offset, block, window), None


path_attend.defvjp(_forward, _backward)


def _layout(bins: Bin):
    """(path [W,J,C], blocks [W,X,4]) as int32."""
    fields = (bins.block_row_X, bins.block_node_X, bins.block_position_X, bins.block_count_X)
    return bins.path_JC.astype(jnp.int32), jnp.stack(fields, axis=-1).astype(jnp.int32)


def _divided(blocks_WX4, block: int, size: int):
    """The same nodes in tiles of at most `size`; and that size."""
    size = min(size, block)
    row, node, position, count = (blocks_WX4[..., None, i] for i in range(4))
    skip = jnp.arange(0, block, size, dtype=jnp.int32)
    tiles = [jnp.broadcast_to(row, (*row.shape[:-1], skip.size)), node + skip, position + skip]
    tiles.append(jnp.clip(count - skip, 0, size))
    return jnp.stack(tiles, axis=-1).reshape(blocks_WX4.shape[0], -1, 4), size


def _readable(path_WJC, keys: int, nodes: int):
    """Paths in whole key tiles; node 0 stands in where there is none, and no query sees it there."""
    path_WJC = jnp.where(path_WJC < nodes, path_WJC, 0)
    return jnp.pad(path_WJC, [(0, 0), (0, 0), (0, -path_WJC.shape[-1] % keys)])


def _seers(key_tiles_WY4, keys: int, query_tiles_WX4, path_WJC, window: int | None):
    """Which query tiles see each key tile.

    Returns:
      (seers [W,Y,X], the tiles that see it first; number [W,Y] of them; shared [W,Y,J], how many of the tile's nodes,
      from its first on, are on each row's path).
    """

    def of_bin(key_tiles_Y4, query_tiles_X4, path_JC):
        _, node_Y, position_Y, count_Y = key_tiles_Y4.T
        row_X, _, position_X, count_X = query_tiles_X4.T
        offset_S = jnp.arange(keys)
        at_JYS = path_JC.at[:, position_Y[:, None] + offset_S].get(mode="fill", fill_value=-1)
        same_JYS = (at_JYS == node_Y[:, None] + offset_S) & (offset_S < count_Y[:, None])
        shared_YJ = jnp.sum(same_JYS, axis=-1, dtype=jnp.int32).T
        shared_YX = shared_YJ[:, row_X]
        sees_YX = (shared_YX > 0) & (count_X > 0) & (position_X + count_X > position_Y[:, None])
        if window is not None:
            sees_YX &= position_X - (position_Y[:, None] + shared_YX - 1) < window
        seers_YX = jnp.argsort(~sees_YX, axis=1, stable=True).astype(jnp.int32)
        return seers_YX, jnp.sum(sees_YX, axis=1, dtype=jnp.int32), shared_YJ

    return jax.vmap(of_bin)(key_tiles_WY4, query_tiles_WX4, path_WJC)


def _whole(x):
    """All of one bin's array."""
    return pl.BlockSpec((None, *x.shape[1:]), lambda h, x_, w: (w, *(0,) * (x.ndim - 1)))


def _of_head(x, group: int = 1):
    """One head of [W,U,H,E] as [U,E], or of [W,H,U] as [U]; `group` query heads share it."""
    if x.ndim == 3:
        return pl.BlockSpec((None, None, x.shape[2]), lambda h, x_, w: (w, jax.lax.div(h, group), 0))
    shape = (None, x.shape[1], None, x.shape[3])
    return pl.BlockSpec(shape, lambda h, x_, w: (w, 0, jax.lax.div(h, group), 0))


def _call(kernel, name: str, inputs, results, *, grid, **static):
    """Runs a kernel. inputs: (array, its BlockSpec); results: arrays of zeros by head, which the kernel writes into."""
    specs, q = [_of_head(x) for x in results], inputs[0][0]
    warps = 8 if static["queries"] * q.shape[-1] * q.dtype.itemsize >= 2**14 else 4
    return pl.pallas_call(
        functools.partial(kernel, **static),
        grid=grid,
        in_specs=[spec for _, spec in inputs] + specs,
        out_specs=specs,
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
        input_output_aliases={len(inputs) + i: i for i in range(len(results))},
        compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=3),
        interpret=meshes.platform() == "cpu",
        name=name,
    )(*(x for x, _ in inputs), *results)


def _heads(x_WUGR):
    """[W,U,G,R,...] as [W,U,H,...]."""
    return x_WUGR.reshape(*x_WUGR.shape[:2], -1, *x_WUGR.shape[4:])


def _fit(size: int, k_WUGE) -> int:
    """Nodes of a tile of which `size` is the usual number."""
    return size if k_WUGE.shape[-1] * k_WUGE.dtype.itemsize <= WIDE else size // 2


def _attend_here(q_WUGRE, k_WUGE, v_WUGE, path_WJC, blocks_WX4, block, window):
    """(out, norm) of the bins and heads of one device."""
    w, u, g, r, _ = q_WUGRE.shape
    q, keys = _heads(q_WUGRE), _fit(KEYS, k_WUGE)
    tiles, queries = _divided(blocks_WX4, block, _fit(QUERIES, k_WUGE))
    path = _readable(path_WJC, keys, u)
    out, norm = _call(
        forward_kernel,
        "path_attend",
        [
            (q, _of_head(q)),
            (k_WUGE, _of_head(k_WUGE, r)),
            (v_WUGE, _of_head(v_WUGE, r)),
            (path, _whole(path)),
            (tiles, _whole(tiles)),
        ],
        [jnp.zeros(q.shape, v_WUGE.dtype), jnp.zeros((w, g * r, u), jnp.float32)],
        grid=(g * r, tiles.shape[1], w),
        queries=queries,
        keys=keys,
        window=window,
    )
    return out.reshape(q_WUGRE.shape), norm.transpose(0, 2, 1).reshape(w, u, g, r)


def _gradients_here(q_WUGRE, k_WUGE, v_WUGE, path_WJC, blocks_WX4, d_WUGRE, norm_WUGR, offset_WUGR, block, window):
    """(dq, dk, dv) of the bins and heads of one device."""
    w, u, g, r, e = q_WUGRE.shape
    q, d, keys = _heads(q_WUGRE), _heads(d_WUGRE), _fit(KEYS, k_WUGE)
    norm, offset = (_heads(x).transpose(0, 2, 1) for x in (norm_WUGR, offset_WUGR))
    tiles, queries = _divided(blocks_WX4, block, _fit(QUERIES_BACKWARD, k_WUGE))
    key_tiles, own_keys = _divided(blocks_WX4, block, keys)
    path = _readable(path_WJC, keys, u)
    qkv = [(q, _of_head(q)), (k_WUGE, _of_head(k_WUGE, r)), (v_WUGE, _of_head(v_WUGE, r))]
    rest = [(x, _of_head(x)) for x in (d, norm, offset)]
    (dq,) = _call(
        query_gradient_kernel,
        "path_attend_dq",
        [*qkv, (path, _whole(path)), (tiles, _whole(tiles)), *rest],
        [jnp.zeros(q.shape, q.dtype)],
        grid=(g * r, tiles.shape[1], w),
        queries=queries,
        keys=keys,
        window=window,
    )
    tables = [(x, _whole(x)) for x in _seers(key_tiles, own_keys, tiles, path_WJC, window)]
    dk, dv = _call(
        key_gradient_kernel,
        "path_attend_dkv",
        [*qkv, (key_tiles, _whole(key_tiles)), (tiles, _whole(tiles)), *rest, *tables],
        [jnp.zeros(q.shape, jnp.float32) for _ in range(2)],
        grid=(g * r, key_tiles.shape[1], w),
        queries=queries,
        keys=own_keys,
        window=window,
    )
    dk, dv = (x.reshape(w, u, g, r, e).sum(axis=3) for x in (dk, dv))
    return dq.reshape(q_WUGRE.shape), dk.astype(k_WUGE.dtype), dv.astype(v_WUGE.dtype)


def _split(function, static_argnums: tuple, rule: str):
    """`function` on every device's bins and kv heads: axes w and g of the rule may be split, all others are whole."""
    wrapped = custom_partitioning(function, static_argnums=static_argnums)
    operands, results = ([part.split() for part in side.split(",")] for side in rule.split("->"))

    def partition(block, window, mesh, arg_shapes, result_shapes):
        spec = (*arg_shapes[0].sharding.spec, *(None,) * 5)
        axes = {"w": spec[0], "g": spec[2]}

        def place(names):
            return NamedSharding(mesh, PartitionSpec(*(axes.get(name) for name in names)))

        def run(*arrays):
            return function(*arrays, block, window)

        return mesh, run, tuple(map(place, results)), tuple(map(place, operands))

    wrapped.def_partition(partition=partition, sharding_rule=rule)
    return wrapped


_attend = _split(_attend_here, (5, 6), "w u g r e, w u g e, w u g e, w j c, w x f -> w u g r e, w u g r")
_gradients = _split(
    _gradients_here,
    (8, 9),
    "w u g r e, w u g e, w u g e, w j c, w x f, w u g r e, w u g r, w u g r -> w u g r e, w u g e, w u g e",
)
