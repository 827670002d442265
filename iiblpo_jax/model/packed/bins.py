"""Which tokens of many trajectories are the same, and how the different ones are packed into bins.

A forward of N padded rows computes a prompt once a trajectory and an inherited prefix once a branch. Here rows of one
prompt form a prefix tree, and every node of the tree is computed once:

    row 0   q q a b c d        nodes 0 1 2 3 4        (the last token is never fed)
    row 1   q q a b x y z            0 1 2 5 6 7      b is fed twice: its two successors are different nodes
    row 2   q q a b c                0 1 2 3          nothing new

A node is an input position together with the token that follows it, so each node has one target and each response token
one node. Node p of a row exists already if an earlier row of the same prompt begins with the same p + 2 tokens: it
does not matter whether the tokens were inherited in a branch or happened to be sampled alike. Where z changes the
forward, nodes are private from the first token with z on.

Rows go, in order, into bins of at most U nodes; a row that does not fit opens the next bin, where its whole path is
computed again. The number of bins is data, their size is not: programs loop over bins and are compiled once.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import struct

from iiblpo_jax.devices import mesh as meshes


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackSpec:
    """Capacities of a bin.

    Attributes:
      tokens: U nodes.
      rows: J rows; more than U nodes hold unless rows repeat each other a lot.
      block: Q queries that attention takes together; all of one row.
      blocks: X query blocks; a row's last block may be partly empty.
    """

    tokens: int
    rows: int
    block: int
    blocks: int


def pack_spec(tokens: int, *, rows: int, width: int, parts: int = 1) -> PackSpec:
    """Capacities for bins of about `tokens` nodes.

    Args:
      tokens: wanted U; raised to what one whole row needs, and to a multiple of `parts`.
      rows: rows there are.
      width: C, columns of the longest row.
      parts: equal parts into which a bin's nodes can be split.
    """
    tokens = -(-max(tokens, width) // parts) * parts
    block = min(128, max(16, 2 ** math.ceil(math.log2(width / 4))))
    rows = min(rows, 4 * math.ceil(tokens / width))
    return PackSpec(tokens=tokens, rows=rows, block=block, blocks=math.ceil(tokens / block) + max(1, rows // 2))


@struct.dataclass
class Packing:
    """Where every row's nodes are.

    Attributes:
      bin_N: bin of each row; never decreasing.
      path_NC: node in the row's bin of each input position; U from the row's last input on.
      shared_N: input positions of the row that earlier rows of its bin already have.
      inputs_N: input positions of the row, its length - 1.
      start_N: first of the row's own nodes, which follow each other.
      block_N: first of the row's query blocks.
      bins: number of bins.
      nodes: number of nodes in all bins.
    """

    bin_N: jax.Array
    path_NC: jax.Array
    shared_N: jax.Array
    inputs_N: jax.Array
    start_N: jax.Array
    block_N: jax.Array
    bins: jax.Array
    nodes: jax.Array


def make_packing(
    tokens_NC: jax.Array, length_N: jax.Array, *, group: int, spec: PackSpec, private_N: jax.Array | None = None
) -> Packing:
    """Packs rows into bins.

    Args:
      tokens_NC: right-padded rows [context, text]; `group` rows each of one prompt follow one another.
      length_N: tokens of each row; 0 or 1 = the row has no node.
      group: rows that may share nodes; divides N.
      spec: capacities.
      private_N: input position from which a row's nodes are its own (z on); None = never.
    """
    n, c = tokens_NC.shape
    inputs_N = jnp.maximum(length_N - 1, 0)
    limit_N = inputs_N if private_N is None else jnp.minimum(inputs_N, private_N)
    common_NG = _common_nodes(tokens_NC.reshape(-1, group, c), limit_N.reshape(-1, group)).reshape(n, group)
    bin_N, shared_N, donor_N, start_N, block_N = _next_fit(common_NG, inputs_N, spec)
    path_NC = _paths(shared_N, donor_N, start_N, inputs_N, group=group, width=c, nowhere=spec.tokens)
    return Packing(
        bin_N=bin_N,
        path_NC=path_NC,
        shared_N=shared_N,
        inputs_N=inputs_N,
        start_N=start_N,
        block_N=block_N,
        bins=bin_N[-1] + 1,
        nodes=jnp.sum(inputs_N - shared_N),
    )


def _common_nodes(tokens_PGC, limit_PG):
    """[P,G,G] leading nodes that two rows of a prompt have in common."""
    column_C = jnp.arange(tokens_PGC.shape[2])

    def with_row(j):
        same_PGC = tokens_PGC == tokens_PGC[:, j, None]
        equal_PG = jnp.where(same_PGC, tokens_PGC.shape[2], column_C).min(-1)
        return jnp.clip(equal_PG - 1, 0, jnp.minimum(limit_PG, limit_PG[:, j, None]))

    return jax.lax.map(with_row, jnp.arange(tokens_PGC.shape[1])).transpose(1, 2, 0)


def _next_fit(common_NG, inputs_N, spec: PackSpec):
    """(bin, shared, donor, start, first block) of every row, rows in order."""
    n, group = common_NG.shape
    member_G = jnp.arange(group)

    def place(used, row):
        bin_, first, tokens, blocks, rows = used
        index, common_G, inputs = row
        base = index - index % group
        # A donor is an earlier row of the same prompt in the same bin.
        common_G = jnp.where((member_G < index % group) & (base + member_G >= first), common_G, 0)
        shared = common_G.max()
        own_blocks = -(-(inputs - shared) // spec.block)
        fits = (tokens + inputs - shared <= spec.tokens) & (blocks + own_blocks <= spec.blocks) & (rows < spec.rows)
        shared = jnp.where(fits, shared, 0)
        start, block, rows = (jnp.where(fits, x, 0) for x in (tokens, blocks, rows))
        bin_, first = jnp.where(fits, bin_, bin_ + 1), jnp.where(fits, first, index)
        own = inputs - shared
        used = (bin_, first, start + own, block - (-own // spec.block), rows + 1)
        return used, (bin_, shared, base + jnp.argmax(common_G), start, block)

    zero = jnp.int32(0)
    rows = (jnp.arange(n, dtype=jnp.int32), common_NG.astype(jnp.int32), inputs_N.astype(jnp.int32))
    return jax.lax.scan(place, (zero,) * 5, rows)[1]


def _paths(shared_N, donor_N, start_N, inputs_N, *, group: int, width: int, nowhere: int):
    """path_NC: a donor's path up to what is shared, then the row's own nodes."""
    position_C = jnp.arange(width)
    own_NC = start_N[:, None] + position_C - shared_N[:, None]

    def by_group(x):
        return x.reshape(-1, group, *x.shape[1:])

    shared_PG, donor_PG, own_PGC = by_group(shared_N), by_group(donor_N) % group, by_group(own_NC)

    def resolve(j, path_PGC):
        from_donor_PC = jnp.take_along_axis(path_PGC, donor_PG[:, j, None, None], axis=1)[:, 0]
        path_PC = jnp.where(position_C < shared_PG[:, j, None], from_donor_PC, own_PGC[:, j])
        return path_PGC.at[:, j].set(path_PC)

    path_NC = jax.lax.fori_loop(1, group, resolve, own_PGC).reshape(-1, width)
    return jnp.where(position_C < inputs_N[:, None], path_NC, nowhere).astype(jnp.int32)


@struct.dataclass
class Bin:
    """One bin, as a forward needs it.

    Attributes:
      row_J: which of the N rows they are.
      valid_J: places that hold a row of this bin.
      path_JC: as in Packing; nowhere (U) in places without a row.
      token_U, position_U: input of each node and where it stands in its sequence; 0 past the last node.
      owner_U: place (J) of the row whose own node it is.
      block_row_X, block_node_X, block_position_X: place, first node and first position of each query block.
      block_count_X: nodes in it; 0 in blocks that are not used.
    """

    row_J: jax.Array
    valid_J: jax.Array
    path_JC: jax.Array
    token_U: jax.Array
    position_U: jax.Array
    owner_U: jax.Array
    block_row_X: jax.Array
    block_node_X: jax.Array
    block_position_X: jax.Array
    block_count_X: jax.Array


def take_bin(packing: Packing, tokens_NC: jax.Array, index: jax.Array, spec: PackSpec) -> Bin:
    """Bin number `index` of a packing; one past the last is a bin without rows."""
    n = packing.bin_N.shape[0]
    first = jnp.searchsorted(packing.bin_N, index, side="left")
    row_J = first + jnp.arange(spec.rows)
    valid_J = (row_J < n) & (packing.bin_N.at[row_J].get(mode="clip") == index)
    row_J = jnp.minimum(row_J, n - 1)

    def at(x_N):
        return x_N[row_J]

    own_J = jnp.where(valid_J, at(packing.inputs_N) - at(packing.shared_N), 0)
    total = own_J.sum()
    # Places without a row begin where the last row ends, so that starts never decrease.
    start_J = jnp.where(valid_J, at(packing.start_N), total)
    blocks_J = -(-own_J // spec.block)
    block_J = jnp.where(valid_J, at(packing.block_N), blocks_J.sum())

    node_U = jnp.arange(spec.tokens)
    owner_U = jnp.searchsorted(start_J, node_U, side="right") - 1
    used_U = node_U < total
    position_U = jnp.where(used_U, at(packing.shared_N)[owner_U] + node_U - start_J[owner_U], 0)
    token_U = jnp.where(used_U, tokens_NC[row_J[owner_U], position_U], 0)

    block_X = jnp.arange(spec.blocks)
    row_X = jnp.searchsorted(block_J, block_X, side="right") - 1
    offset_X = (block_X - block_J[row_X]) * spec.block
    return Bin(
        row_J=row_J,
        valid_J=valid_J,
        path_JC=jnp.where(valid_J[:, None], at(packing.path_NC), spec.tokens),
        token_U=token_U,
        position_U=position_U,
        owner_U=owner_U,
        block_row_X=row_X,
        block_node_X=start_J[row_X] + offset_X,
        block_position_X=at(packing.shared_N)[row_X] + offset_X,
        block_count_X=jnp.clip(own_J[row_X] - offset_X, 0, spec.block),
    )


def part_of(bins: Bin, part: jax.Array, parts: int) -> Bin:
    """The bins as one of `parts` devices sees them that split the nodes [W,U] into equal runs.

    Query blocks are those of its own run, their nodes counted from its first; paths, hence keys, stay those of all.
    """
    size = bins.token_U.shape[-1] // parts
    first_WX = bins.block_node_X - part * size
    start_WX, end_WX = (jnp.clip(x, 0, size) for x in (first_WX, first_WX + bins.block_count_X))
    order_WX = jnp.argsort(end_WX == start_WX, axis=-1, stable=True)  # used blocks first

    def take(x_WX):
        return jnp.take_along_axis(x_WX, order_WX, axis=-1)

    return dataclasses.replace(
        bins,
        block_row_X=take(bins.block_row_X),
        block_node_X=take(start_WX),
        block_count_X=take(end_WX - start_WX),
        block_position_X=take(bins.block_position_X + start_WX - first_WX),
    )


class PackedRows:
    """Rows, their packing, and the way back from bins to rows; every one of W data shards packs its own.

    Args:
      tokens_NC, length_N, group, private_N: of `make_packing`.
      tokens: wanted nodes of a bin.
      shards: W.

    Attributes:
      spec: capacities of a bin.
      tokens_WNC: the rows.
      count: bins of the fullest shard, data-dependent.
      nodes: nodes in all bins of all shards.
    """

    def __init__(self, tokens_NC, length_N, *, tokens: int, group: int, shards: int = 1, private_N=None):
        self._shards = shards
        self.tokens_WNC = self.by_shard(tokens_NC)
        _, n, c = self.tokens_WNC.shape
        parts = meshes.shards(meshes.current(), "sequence")
        self.spec = spec = pack_spec(tokens, rows=n, width=c, parts=parts)

        def split(x):
            return x if x is None else self.by_shard(x)

        def pack(rows, length, private):
            return make_packing(rows, length, group=group, spec=spec, private_N=private)

        self._packing = jax.vmap(pack)(self.tokens_WNC, split(length_N), split(private_N))
        self.count, self.nodes = self._packing.bins.max(), self._packing.nodes.sum()

    def bins(self, i) -> Bin:
        """Bin i of every shard, stacked."""
        return jax.vmap(take_bin, (0, 0, None, None))(self._packing, self.tokens_WNC, i, self.spec)

    def by_shard(self, x_N: jax.Array) -> jax.Array:
        """[N, ...] as [W, N/W, ...]."""
        x_WN = x_N.reshape(self._shards, -1, *x_N.shape[1:])
        return meshes.constrain(x_WN, "batch", *[None] * (x_WN.ndim - 1))

    def cut(self, tree, bins: Bin):
        """The rows of W bins, [W*J, ...], out of arrays with the N rows leading."""
        take = jax.vmap(lambda x_N, row_J: x_N[row_J])
        return jax.tree.map(lambda x: take(self.by_shard(x), bins.row_J).reshape(-1, *x.shape[1:]), tree)

    def collect(self, function):
        """function(bins), a tree of [W,J, ...], for all bins, as a tree of [rows, ...]; zeros in rows without nodes."""
        n = self.tokens_WNC.shape[1]
        put = jax.vmap(lambda x_N, row_J, new_J: x_N.at[row_J].set(new_J, mode="drop"))

        def place(i, whole):
            bins = self.bins(i)
            row_WJ = jnp.where(bins.valid_J, bins.row_J, n)
            return jax.tree.map(lambda x_WN, new_WJ: put(x_WN, row_WJ, new_WJ), whole, function(bins))

        shapes = jax.eval_shape(lambda: function(self.bins(0)))
        zeros = jax.tree.map(lambda s: self.by_shard(jnp.zeros((self._shards * n, *s.shape[2:]), s.dtype)), shapes)
        whole = jax.lax.fori_loop(0, self.count, place, zeros)
        return jax.tree.map(lambda x_WN: x_WN.reshape(-1, *x_WN.shape[2:]), whole)
