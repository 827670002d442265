"""Pseudo self-attention: how a latent z steers the policy (arXiv 2601.05870; README "Method").

At every injected layer l, for tokens where z is on,

    RMSNorm weight   w_l + gamma * (z W_gain_l)
    one pseudo key   z W_key_l      (no rope)   with log gamma added to its logit
    one pseudo value z W_value_l

Queries are unchanged. gamma halves every `half_life` generated tokens. With z off the backbone is untouched.
"""

import jax
import jax.numpy as jnp
from flax import nnx, struct

from iiblpo_jax.model.attention import OFF, NodePseudo, Pseudo
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.packed.bins import Bin


class PSA(nnx.Module):
    """Projections of z for the last N layers.

    Attributes:
      gain [N,Z,D], key [N,Z,G,E], value [N,Z,G,E]: nnx.Params, stacked over the injected layers.
    """

    def __init__(self, config: ModelConfig, z_width: int, n_injected: int, *, rngs: nnx.Rngs):
        n, z, kv = n_injected, z_width, (config.n_kv_heads, config.head_dim)
        # Gain and value start at zero: an untrained z is silent, not noise. Random keys let the values learn.
        key = jax.random.normal(rngs.params(), (n, z, *kv)) * z**-0.5
        self.gain = nnx.Param(jnp.zeros((n, z, config.d_model)), axes=("layers", "latent", "embed"))
        self.key = nnx.Param(key, axes=("layers", "latent", "kv_heads", "head"))
        self.value = nnx.Param(jnp.zeros_like(key), axes=("layers", "latent", "kv_heads", "head"))


def bind_psa(psa_params: dict, config: ModelConfig) -> PSA:
    """A PSA module over an existing dict of arrays (works inside jit, allocates nothing)."""
    n, z, _ = psa_params["gain"].shape
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: PSA(config, z, n, rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, psa_params)


@struct.dataclass
class Latent:
    """Where and how strongly latents act on the tokens of a batch of rows.

    Attributes:
      z_BJZ: the J latents of a row; J > 1 only when branches grow on branches.
      segment_BT: int32, which of the J latents token t uses; -1 = z off.
      gamma_BT: strength in [0, strength * 2^(1/half_life)]; ignored where the segment is -1.
    """

    z_BJZ: jax.Array
    segment_BT: jax.Array
    gamma_BT: jax.Array


def gamma(tokens_since_branch, *, half_life: float, strength: float):
    """Strength of z n = `tokens_since_branch` tokens after t*: strength * 0.5 ** (n / half_life)."""
    return strength * 0.5 ** (tokens_since_branch / half_life)


def latent_inputs(
    z_RJZ: jax.Array,
    branch_at_RJ: jax.Array,
    prompt_len_R: jax.Array,
    length: int,
    *,
    half_life: float,
    strength: float,
) -> Latent:
    """Places latents on rows [prompt, response].

    Args:
      z_RJZ: latents of the J levels of each trajectory's path.
      branch_at_RJ: response index t* at which level j begins, 0 where there is no such level. A later level overrides
        an earlier one from its own t* - 1 on (the token before t* is fed again with z on); one of -t* switches it off.
      prompt_len_R: tokens of each prompt.
      length: columns of the rows.
      half_life: tokens in which gamma halves.
      strength: gamma at t*.
    """
    index_RC = jnp.arange(length)[None] - prompt_len_R[:, None]
    begun_RJC = (branch_at_RJ != 0)[..., None] & (index_RC[:, None] >= jnp.abs(branch_at_RJ)[..., None] - 1)
    level_J = jnp.arange(branch_at_RJ.shape[1])
    segment_RC = jnp.where(begun_RJC, level_J[None, :, None], -1).max(1)
    start_RC = jnp.take_along_axis(branch_at_RJ, jnp.maximum(segment_RC, 0), axis=1)
    segment_RC = jnp.where(start_RC < 0, -1, segment_RC)
    gamma_RC = gamma(jnp.maximum(index_RC + 1 - start_RC, 0), half_life=half_life, strength=strength)
    return Latent(z_BJZ=z_RJZ, segment_BT=segment_RC, gamma_BT=gamma_RC.astype(jnp.float32))


def layer_weights(psa: PSA, n_layers: int) -> dict:
    """Projections with a leading axis of all L layers: zeros and `on` = False below the injected ones."""
    n = psa.gain.shape[0]

    def pad(w):
        return jnp.pad(w[...], [(n_layers - n, 0)] + [(0, 0)] * (w.ndim - 1))

    on_L = jnp.arange(n_layers) >= n_layers - n
    return {"gain": pad(psa.gain), "key": pad(psa.key), "value": pad(psa.value), "on": on_L}


def layer_injection(weights: dict, latent: Latent, dtype) -> tuple[jax.Array, Pseudo]:
    """One layer's gain [B,T,D] (to be added to the norm weight) and its pseudo positions.

    Args:
      weights: one layer of `layer_weights`.
      latent: where z acts.
      dtype: dtype of the layer's keys and values.
    """
    z = latent.z_BJZ.astype(jnp.float32)
    uses_BTJ = latent.segment_BT[..., None] == jnp.arange(z.shape[1])
    visible_BTJ = uses_BTJ & (latent.gamma_BT > 0)[..., None] & weights["on"]
    strength_BTJ = jnp.where(uses_BTJ, latent.gamma_BT[..., None], 0.0)
    gain_BTD = jnp.einsum("btj,bjd->btd", strength_BTJ, z @ weights["gain"])
    log_gamma_BT1 = jnp.log(jnp.maximum(latent.gamma_BT, 1e-30))[..., None]
    pseudo = Pseudo(
        k_BJGE=jnp.einsum("bjz,zge->bjge", z, weights["key"]).astype(dtype),
        v_BJGE=jnp.einsum("bjz,zge->bjge", z, weights["value"]).astype(dtype),
        bias_BTJ=jnp.where(visible_BTJ, log_gamma_BT1, OFF),
    )
    return gain_BTD, pseudo


def node_injection(weights: dict, z_WIZ: jax.Array, index_WU: jax.Array, gamma_WU: jax.Array):
    """`layer_injection` for packed nodes: one layer's gain [W,U,D] and the pseudo position of every node.

    Args:
      weights: one layer of `layer_weights`.
      z_WIZ: the latents of W bins.
      index_WU: latent of each node.
      gamma_WU: its strength, 0 = off.
    """
    z = z_WIZ.astype(jnp.float32)

    def of_node(x_WI):
        return jax.vmap(lambda x, i: x[i])(x_WI, index_WU)

    on_WU = (gamma_WU > 0) & weights["on"]
    pseudo = NodePseudo(
        k_WUGE=of_node(jnp.einsum("wiz,zge->wige", z, weights["key"])),
        v_WUGE=of_node(jnp.einsum("wiz,zge->wige", z, weights["value"])),
        bias_WU=jnp.where(on_WU, jnp.log(jnp.maximum(gamma_WU, 1e-30)), OFF),
    )
    return gamma_WU[..., None] * of_node(z @ weights["gain"]), pseudo


@struct.dataclass
class NodeLatent:
    """Which latent acts on each node of W bins.

    Attributes:
      z_WIZ: the I latents of a bin.
      index_WU: latent of the node.
      gamma_WU: its strength; 0 = z off.
    """

    z_WIZ: jax.Array
    index_WU: jax.Array
    gamma_WU: jax.Array


def node_latent(latent: Latent, bins: Bin) -> NodeLatent:
    """The latents of the rows of W bins (leading axes [W,N]), node by node."""

    def of_bin(latent: Latent, one: Bin):
        z_JVZ = latent.z_BJZ[one.row_J]
        row_U = one.row_J[one.owner_U]
        segment_U = latent.segment_BT[row_U, one.position_U]
        gamma_U = jnp.where(segment_U >= 0, latent.gamma_BT[row_U, one.position_U], 0.0)
        index_U = one.owner_U * z_JVZ.shape[1] + jnp.maximum(segment_U, 0)
        return NodeLatent(z_WIZ=z_JVZ.reshape(-1, z_JVZ.shape[-1]), index_WU=index_U, gamma_WU=gamma_U)

    return jax.vmap(of_bin)(latent, bins)
