"""Pseudo self-attention: how a latent z steers the policy (arXiv 2601.05870; README "Method").

At every injected layer l, for tokens where z is on,

    RMSNorm weight   w_l + gamma * (z W_gain_l)
    one pseudo key   z W_key_l      (no rope)   with log gamma added to its logit
    one pseudo value z W_value_l

Queries are unchanged. gamma halves every `half_life` generated tokens. With z off the backbone is untouched.

A forward knows nothing of this: it takes a `layer.Inject`. `steer_rows`, `steer_nodes` and `steer_slots` make one, for
padded rows, packed bins and the slots of a rollout.
"""

import jax
import jax.numpy as jnp
from flax import nnx, struct

from iiblpo_jax.devices.mesh import constrain
from iiblpo_jax.model.attention import OFF, Pseudo
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


@struct.dataclass
class TokenSteering:
    """The `Inject` of W sequences of U tokens (padded rows, packed bins), each token with one of its sequence's z's.

    Attributes:
      layers: of `layer_weights`.
      z_WIZ: the I latents of a sequence.
      index_WU: latent of the token.
      gamma_WU: its strength; 0 = z off.
    """

    layers: dict
    z_WIZ: jax.Array
    index_WU: jax.Array
    gamma_WU: jax.Array

    def at(self, layer: dict) -> tuple[jax.Array, Pseudo]:
        """The gain [W,U,D] and the pseudo position of every token."""
        z = self.z_WIZ.astype(jnp.float32)

        def of_token(x_WI):
            return jax.vmap(lambda x, i: x[i])(x_WI, self.index_WU)

        pseudo = Pseudo(
            k_GE=of_token(jnp.einsum("wiz,zge->wige", z, layer["key"])),
            v_GE=of_token(jnp.einsum("wiz,zge->wige", z, layer["value"])),
            bias=log_gamma(self.gamma_WU, layer["on"]),
        )
        return self.gamma_WU[..., None] * of_token(z @ layer["gain"]), pseudo


def log_gamma(gamma, on=True) -> jax.Array:
    """log gamma where z is on, OFF elsewhere."""
    return jnp.where((gamma > 0) & on, jnp.log(jnp.maximum(gamma, 1e-30)), OFF)


def steer_rows(psa: PSA, n_layers: int, latent: Latent) -> TokenSteering:
    """The `Inject` of padded rows."""
    on_BT = latent.segment_BT >= 0
    return TokenSteering(
        layers=layer_weights(psa, n_layers),
        z_WIZ=latent.z_BJZ,
        index_WU=jnp.maximum(latent.segment_BT, 0),
        gamma_WU=jnp.where(on_BT, latent.gamma_BT, 0.0),
    )


def steer_nodes(psa: PSA, n_layers: int, latent: Latent, bins: Bin) -> TokenSteering:
    """The `Inject` of W bins, node by node; the rows of `latent` have leading axes [W,N]."""

    def of_bin(latent: Latent, one: Bin):
        z_JVZ = latent.z_BJZ[one.row_J]
        row_U = one.row_J[one.owner_U]
        segment_U = latent.segment_BT[row_U, one.position_U]
        gamma_U = jnp.where(segment_U >= 0, latent.gamma_BT[row_U, one.position_U], 0.0)
        index_U = one.owner_U * z_JVZ.shape[1] + jnp.maximum(segment_U, 0)
        return z_JVZ.reshape(-1, z_JVZ.shape[-1]), index_U, gamma_U

    z_WIZ, index_WU, gamma_WU = jax.vmap(of_bin)(latent, bins)
    return TokenSteering(layers=layer_weights(psa, n_layers), z_WIZ=z_WIZ, index_WU=index_WU, gamma_WU=gamma_WU)


@struct.dataclass
class Projected:
    """z of every slot through the projections of the last J layers: unscaled gain, pseudo key and pseudo value."""

    gain_JBD: jax.Array
    k_JBGE: jax.Array
    v_JBGE: jax.Array


def project_latents(psa: PSA, z_BZ: jax.Array, n_layers: int, kv_copies: int) -> Projected:
    """What z adds to the last n_layers layers of every slot; zeros below those that PSA injects.

    A slot keeps it as long as its z: a rollout carries it along, and `steer_slots` adds the strength.

    kv_copies: of the Published that decodes.
    """
    below = n_layers - psa.gain.shape[0]

    def pad(w):
        return jnp.pad(w[...], [(below, 0)] + [(0, 0)] * (w.ndim - 1))

    def heads(w):
        x_JBGE = jnp.repeat(jnp.einsum("bz,jzge->jbge", z_BZ, pad(w)), kv_copies, axis=2)
        return constrain(x_JBGE, None, None, "kv_heads", None)

    gain_JBD = jnp.einsum("bz,jzd->jbd", z_BZ, pad(psa.gain))
    return Projected(gain_JBD=gain_JBD, k_JBGE=heads(psa.key), v_JBGE=heads(psa.value))


@struct.dataclass
class SlotSteering:
    """The `Inject` of one token a slot.

    Attributes:
      layers: of `project_latents`.
      gamma_B: strength of z; 0 = off.
      bias_B: its logarithm, OFF where z is off.
    """

    layers: Projected
    gamma_B: jax.Array
    bias_B: jax.Array

    def at(self, layer: Projected) -> tuple[jax.Array, Pseudo]:
        """The gain [B,D] and the pseudo position of every slot. Where z is off they weigh exactly 0."""
        pseudo = Pseudo(k_GE=layer.k_JBGE, v_GE=layer.v_JBGE, bias=self.bias_B)
        return self.gamma_B[:, None] * layer.gain_JBD, pseudo


def steer_slots(projected: Projected, gamma_B: jax.Array) -> SlotSteering:
    """The `Inject` of the slots of a rollout."""
    return SlotSteering(layers=projected, gamma_B=gamma_B, bias_B=log_gamma(gamma_B))
