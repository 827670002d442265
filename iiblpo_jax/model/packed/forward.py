"""The full forward over packed bins: each node once, attention along paths (packing.py, path_attention.py)."""

import jax
import jax.numpy as jnp
from flax import nnx

from iiblpo_jax.devices.mesh import constrain
from iiblpo_jax.model.decoder import Decoder, output_weights
from iiblpo_jax.model.layer import rms_norm
from iiblpo_jax.model.logprobs import chunked_logprobs
from iiblpo_jax.model.packed.attention import implementation, on_mesh
from iiblpo_jax.model.packed.bins import Bin
from iiblpo_jax.model.steering.psa import PSA, NodeLatent, layer_weights, node_injection


def packed_hidden_states(
    model: Decoder,
    bins: Bin,
    *,
    block: int,
    attention: str = "blocks",
    latent: NodeLatent | None = None,
    psa: PSA | None = None,
    remat: bool = False,
) -> jax.Array:
    """Final-norm hidden states [W,U,D] of the nodes of W bins; meaningless past a bin's last node.

    Args:
      model: the decoder.
      bins: W bins, stacked.
      block: PackSpec.block.
      attention: attention.impl of the config.
      latent, psa: pseudo self-attention, both or neither.
      remat: recompute each layer in the backward pass instead of keeping its activations.
    """
    config = model.config
    path_attend = on_mesh(implementation(attention, config.head_dim))

    def spread(x_WUD):
        return constrain(x_WUD, "batch", "sequence", None)

    # Rows of the table are split over `fsdp` as nodes are: looked up as it lies, all nodes would be gathered.
    x_WUD = spread(constrain(model.embed[...], "vocab", None)[bins.token_U])
    block_graph, stacked = nnx.split(model.layers)
    injected = None if psa is None else layer_weights(psa, config.n_layers)

    def layer(x_WUD, weights):
        block_state, psa_layer = weights
        this = nnx.merge(block_graph, block_state)
        if psa_layer is None:
            q, k, v = this.qkv(x_WUD, bins.position_U)
            heads, _ = path_attend(q, k, v, bins, block, config.sliding_window)
        else:
            gain_WUD, pseudo = node_injection(psa_layer, latent.z_WIZ, latent.index_WU, latent.gamma_WU)
            q, k, v = this.qkv(x_WUD, bins.position_U, gain_WUD)
            heads = pseudo.merge(q, *path_attend(q, k, v, bins, block, config.sliding_window))
        return spread(this.finish(x_WUD, heads)), None

    x_WUD, _ = jax.lax.scan(jax.checkpoint(layer) if remat else layer, x_WUD, (stacked, injected))
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
    latent: NodeLatent | None = None,
    psa: PSA | None = None,
    remat: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities and entropies of the first `t` tokens after each row's context, for the rows of W bins.

    Args:
      model: the decoder.
      tokens_WNC, context_len_WN: the rows that were packed, and where the text of each begins.
      bins: W bins, stacked.
      t: text tokens wanted; entries past a row's end, and rows that are not valid, hold zeros.
      block, attention, latent, psa, remat: of `packed_hidden_states`.
      temperature: divides the logits.

    Returns:
      (logp_WJT, entropy_WJT), float32, differentiable.
    """
    h_WUD = packed_hidden_states(model, bins, block=block, attention=attention, latent=latent, psa=psa, remat=remat)
    u = h_WUD.shape[1]
    node_WJT, target_WU = jax.vmap(_emissions, (0, 0, 0, None))(tokens_WNC, context_len_WN, bins, t)
    # Nodes that emit nothing (prompts, padding) go last, and the LM head stops before them.
    order_WU = jnp.argsort(target_WU < 0, axis=1, stable=True)
    place_WU = jnp.argsort(order_WU, axis=1)
    used = jnp.sum(target_WU >= 0, axis=1).max()

    def take(x_WU, i_WU):
        return jax.vmap(lambda x, i: x[i])(x_WU, i_WU)

    outputs = chunked_logprobs(
        take(h_WUD, order_WU),
        output_weights(model),
        jnp.maximum(take(target_WU, order_WU), 0),
        temperature=temperature,
        used=used,
    )
    place_WU = jnp.pad(place_WU, [(0, 0), (0, 1)], constant_values=u)
    at_WJT = take(place_WU, jnp.minimum(node_WJT, u))
    return tuple(jax.vmap(lambda x, i: x.at[i].get(mode="fill", fill_value=0.0))(x_WU, at_WJT) for x_WU in outputs)


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
