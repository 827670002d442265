"""The full forward over packed bins: each node once, attention along paths (bins.py, attention.py)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from iiblpo_jax.common.padded import Padded
from iiblpo_jax.devices.mesh import constrain
from iiblpo_jax.model.attention import rope_frequencies, rope_table
from iiblpo_jax.model.decoder import Decoder, output_weights
from iiblpo_jax.model.divergence import Teacher
from iiblpo_jax.model.layer import Inject, rms_norm, run_layer
from iiblpo_jax.model.logprobs import chunked_logprobs, other_logprobs
from iiblpo_jax.model.packed.attention import implementation, on_mesh
from iiblpo_jax.model.packed.bins import Bin, PackedRows


def packed_hidden_states(
    model: Decoder,
    bins: Bin,
    *,
    block: int,
    attention: str = "blocks",
    inject: Inject | None = None,
    remat: bool = False,
) -> jax.Array:
    """Final-norm hidden states [W,U,D] of the nodes of W bins; meaningless past a bin's last node.

    Args:
      model: the decoder.
      bins: W bins, stacked.
      block: PackSpec.block.
      attention: attention.impl of the config.
      inject: what steers the nodes [W,U]; None = the plain policy.
      remat: recompute each layer in the backward pass instead of keeping its activations.
    """
    config = model.config
    path_attend = on_mesh(implementation(attention, config.head_dim))

    def spread(x_WUD):
        return constrain(x_WUD, "batch", "sequence", None)

    # Rows of the table are split over `fsdp` as nodes are: looked up as it lies, all nodes would be gathered.
    x_WUD = spread(constrain(model.embed[...], "vocab", None)[bins.token_U])
    table = rope_table(bins.position_U, rope_frequencies(config))

    def attend(q_WUGRE, k_WUGE, v_WUGE):
        found: Any = path_attend(q_WUGRE, k_WUGE, v_WUGE, bins, block, config.sliding_window)
        return *found, None

    def layer(x_WUD, weights):
        mine, injected = weights
        steer = None if inject is None else inject.at(injected)
        x_WUD, _ = run_layer(mine, x_WUD, table, config, attend, steer)
        return spread(x_WUD), None

    xs = model.layers.stacked(), None if inject is None else inject.layers
    x_WUD, _ = jax.lax.scan(jax.checkpoint(layer) if remat else layer, x_WUD, xs)
    return rms_norm(x_WUD, model.final_norm[...], config.norm_eps)


def packed_logprobs(
    model: Decoder,
    tokens_WNC: jax.Array,
    context_len_WN: jax.Array,
    bins: Bin,
    t: int,
    *,
    block: int,
    attention: str = "blocks",
    temperature: float = 1.0,
    never: tuple[int, ...] = (),
    inject: Inject | None = None,
    remat: bool = True,
    teacher: Teacher | None = None,
    others_WNTK: jax.Array | None = None,
) -> tuple[jax.Array, ...]:
    """Log-probabilities and entropies of the first `t` tokens after each row's context, for the rows of W bins.

    Args:
      model: the decoder.
      tokens_WNC, context_len_WN: the rows that were packed, and where the text of each begins.
      bins: W bins, stacked.
      t: text tokens wanted; entries past a row's end, and rows that are not valid, hold zeros.
      block, attention, inject, remat: of `packed_hidden_states`.
      temperature, never: of `model.logprobs.chunked_logprobs`.
      teacher: the same, its columns [W,N,T,...] of the rows that were packed; rows that share a node have one there.
      others_WNTK: of the rows that were packed, as in `model.logprobs.response_logprobs`.

    Returns:
      (logp_WJT, entropy_WJT), float32, differentiable; with a teacher and divergence_WJT, likewise; with `others_WNTK`
      and [W,J,T,K], constants.
    """
    h_WUD = packed_hidden_states(model, bins, block=block, attention=attention, inject=inject, remat=remat)
    u = h_WUD.shape[1]
    node_WJT, target_WU = jax.vmap(_emissions, (0, 0, 0, None))(tokens_WNC, context_len_WN, bins, t)
    # Nodes that emit nothing (prompts, padding) go last, and the LM head stops before them.
    order_WU = jnp.argsort(target_WU < 0, axis=1, stable=True)
    place_WU = jnp.argsort(order_WU, axis=1)
    used = jnp.sum(target_WU >= 0, axis=1).max()

    def take(x_WU, i_WU):
        return jax.vmap(lambda x, i: x[i])(x_WU, i_WU)

    if teacher is not None:
        of_nodes = jax.vmap(_of_nodes)
        columns = (take(of_nodes(x_WNT, context_len_WN, bins), order_WU) for x_WNT in teacher.columns)
        teacher = teacher.replace(columns=tuple(columns))
    w_VD = output_weights(model)
    outputs = chunked_logprobs(
        take(h_WUD, order_WU),
        w_VD,
        jnp.maximum(take(target_WU, order_WU), 0),
        temperature=temperature,
        used=used,
        never=never,
        teacher=teacher,
    )
    place_WU = jnp.pad(place_WU, [(0, 0), (0, 1)], constant_values=u)
    at_WJT = take(place_WU, jnp.minimum(node_WJT, u))
    found = tuple(jax.vmap(lambda x, i: x.at[i].get(mode="fill", fill_value=0.0))(x_WU, at_WJT) for x_WU in outputs)
    if others_WNTK is None:
        return found
    # Row by row, not node by node: of two rows that share a node each has its own tokens to ask for.
    others_WJTK = take(others_WNTK, bins.row_J)
    w, j, _, k = others_WJTK.shape
    at_WX = jnp.minimum(node_WJT, u - 1).reshape(w, -1)
    beside_WXK = other_logprobs(
        h_WUD,
        at_WX,
        w_VD,
        jnp.maximum(take(target_WU, at_WX), 0),
        found[0].reshape(w, -1),
        others_WJTK.reshape(w, -1, k),
        temperature=temperature,
        never=never,
    )
    return *found, jnp.where(node_WJT[..., None] < u, beside_WXK.reshape(w, j, t, k), 0.0)


def packed_states(
    model: Decoder,
    tokens_WNC: jax.Array,
    context_len_WN: jax.Array,
    bins: Bin,
    t: int,
    *,
    block: int,
    attention: str = "blocks",
) -> jax.Array:
    """Final-norm hidden states [W,J,T,D] that emit the first `t` tokens after each row's context; else as
    `packed_logprobs`."""
    h_WUD = packed_hidden_states(model, bins, block=block, attention=attention)
    node_WJT, _ = jax.vmap(_emissions, (0, 0, 0, None))(tokens_WNC, context_len_WN, bins, t)
    return jax.vmap(lambda h_UD, node_JT: h_UD.at[node_JT].get(mode="fill", fill_value=0.0))(h_WUD, node_WJT)


def _of_nodes(x_NT: jax.Array, context_len_N: jax.Array, one: Bin) -> jax.Array:
    """What is said of the text tokens of rows [N,T,...], as said of the nodes that emit them [U,...]."""
    row_U = one.row_J[one.owner_U]
    return x_NT.at[row_U, one.position_U + 1 - context_len_N[row_U]].get(mode="clip")


def last_states(
    model: Decoder,
    rows: Padded,
    read: Callable[[jax.Array], Any],
    *,
    group: int,
    tokens: int,
    shards: int = 1,
    attention: str = "blocks",
) -> Any:
    """read(h) of the final-norm hidden state of the last token of N rows: a tree of [N, ...].

    Args:
      model: the decoder.
      rows: [prompt, response]; no row is empty.
      read: [W,J,D] -> a tree of [W,J, ...], row by row.
      group, tokens, shards: of `PackedRows`; attention: of `packed_hidden_states`.
    """
    # The last token of a packed row is never fed, so every row gets one more that nobody reads.
    longer_NC = jnp.pad(rows.x_NW, [(0, 0), (0, 1)])
    packed = PackedRows(longer_NC, rows.length_N + 1, tokens=tokens, group=group, shards=shards)
    last_WN = packed.by_shard(rows.length_N - 1)

    def of_bin(h_UD, last_N, row_J, path_JC):
        node_J = jnp.take_along_axis(path_JC, last_N[row_J][:, None], axis=1)[:, 0]
        return h_UD[jnp.minimum(node_J, h_UD.shape[0] - 1)]

    def forward(bins):
        h_WUD = packed_hidden_states(model, bins, block=packed.spec.block, attention=attention)
        return read(jax.vmap(of_bin)(h_WUD, last_WN, bins.row_J, bins.path_JC))

    return packed.collect(forward)


def _emissions(tokens_NC, context_len_N, one: Bin, t: int):
    """Node that emits each text token [J,T], U where there is none, and the token each node emits [U], -1 = none."""
    u, width = one.token_U.shape[0], one.path_JC.shape[1]
    position_JT = context_len_N[one.row_J][:, None] + jnp.arange(t) - 1
    inside_JT = (position_JT >= 0) & (position_JT < width) & one.valid_J[:, None]
    node_JT = jnp.take_along_axis(one.path_JC, jnp.clip(position_JT, 0, width - 1), axis=1)
    node_JT = jnp.where(inside_JT, node_JT, u)
    emits_U = jnp.zeros(u, bool).at[node_JT].set(True, mode="drop")
    target_U = tokens_NC.at[one.row_J[one.owner_U], one.position_U + 1].get(mode="clip")
    return node_JT, jnp.where(emits_U, target_U, -1)
