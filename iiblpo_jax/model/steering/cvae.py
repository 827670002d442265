"""The conditional VAE whose prior proposes the latents of a branch (README "Method").

    prior      p(z | c)           c = final-norm hidden state of the last prefix token
    posterior  q(z | c, target)   target = mean final-norm hidden state of the rest of the response
    decoder    target ~ f(c, z)

Three MLPs with two hidden ReLU layers each; diagonal Gaussians (mean, log variance). Inputs and target are
standardised with statistics that are stored beside the weights and never trained. Left out on purpose: a learnt
decoder variance, and any encoder besides the language model itself.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

LOGVAR_MIN, LOGVAR_MAX = -8.0, 4.0  # standard deviations of 0.018 to 7.4: wide enough to matter, safe inside exp()

DRAWS = 8  # z's that stand for the whole prior where it has to be summed over


class Statistic(nnx.Variable):
    """A stored number that no optimiser touches: standardisation and the offset of the prior."""


class MLP(nnx.Module):
    """x [..., I] -> [..., O] through two hidden ReLU layers; weights are stored [out, in]."""

    def __init__(self, inputs: int, hidden: int, outputs: int, *, rngs: nnx.Rngs):
        def weight(rows, columns, gain):
            values = jax.random.normal(rngs.params(), (rows, columns)) * math.sqrt(gain / columns)
            return nnx.Param(values, axes=("latent_mlp", None))

        def bias(rows):
            return nnx.Param(jnp.zeros(rows), axes=("latent_mlp",))

        self.w_in, self.b_in = weight(hidden, inputs, 2.0), bias(hidden)
        self.w_mid, self.b_mid = weight(hidden, hidden, 2.0), bias(hidden)
        self.w_out, self.b_out = weight(outputs, hidden, 1.0), bias(outputs)

    def __call__(self, x):
        x = nnx.relu(x @ self.w_in[...].T + self.b_in[...])
        x = nnx.relu(x @ self.w_mid[...].T + self.b_mid[...])
        return x @ self.w_out[...].T + self.b_out[...]


class CVAE(nnx.Module):
    """Prior, posterior and decoder over latents of width Z for a language model of width D.

    Methods take any leading axes. `context` [..., D] and `target` [..., D] are raw hidden states: they are standardised
    inside. Moments of the prior and posterior are those before centring; the z that PSA injects is z - offset.

    Attributes:
      offset: [Z], mean prior mean over training contexts. A constant part of z would be an adapter, not a latent.
    """

    def __init__(self, width: int, latent: int, hidden: int, *, rngs: nnx.Rngs):
        self.width, self.latent, self.hidden = width, latent, hidden
        self.prior_mlp = MLP(width, hidden, 2 * latent, rngs=rngs)
        self.posterior_mlp = MLP(2 * width, hidden, 2 * latent, rngs=rngs)
        self.decoder_mlp = MLP(width + latent, hidden, width, rngs=rngs)
        self.context_mean, self.context_std = statistic(0.0, width), statistic(1.0, width)
        self.target_mean, self.target_std = statistic(0.0, width), statistic(1.0, width)
        self.offset = statistic(0.0, latent)

    def prior(self, context):
        """p(z | c): (mean [..., Z], log variance [..., Z])."""
        return _gaussian(self.prior_mlp(self._standard_context(context)))

    def posterior(self, context, target):
        """q(z | c, target): (mean [..., Z], log variance [..., Z])."""
        both = jnp.concatenate([self._standard_context(context), self.standard_target(target)], -1)
        return _gaussian(self.posterior_mlp(both))

    def decode(self, context, z):
        """Reconstruction [..., D] of the standardised target from an uncentred z [..., Z]."""
        return self.decoder_mlp(jnp.concatenate([self._standard_context(context), z], -1))

    def standard_target(self, target):
        """(target - mean) / std, [..., D]."""
        return (target - self.target_mean[...]) / self.target_std[...]

    def sample_prior(self, context_BD, keys_B, power: float = 1.0):
        """The z [B,Z] to inject: z ~ p(z | c)^power - offset. Row b depends on context_BD[b] and keys_B[b] alone.

        A Gaussian's power above 0, normalised, is the Gaussian with 1 / power of the variance.
        """
        mean_BZ, logvar_BZ = self.prior(context_BD)
        return sample(mean_BZ, logvar_BZ - math.log(power), keys_B) - self.offset[...]

    def from_uniform(self, context_BD, uniform_BZ, power: float = 1.0):
        """The z [B,Z] that numbers in [0, 1) stand for: the inverse of the distribution function of p(z | c)^power,
        dimension by dimension."""
        mean_BZ, logvar_BZ = self.prior(context_BD)
        logvar_BZ -= math.log(power)
        normal_BZ = jax.scipy.special.ndtri(jnp.clip(uniform_BZ, 1e-6, 1 - 1e-6))
        return mean_BZ + jnp.exp(0.5 * logvar_BZ) * normal_BZ - self.offset[...]

    def support(self, context_BD, keys_B):
        """DRAWS z's [B,I,Z] from the prior and the logarithms of their weights [B,I], all 1 / DRAWS."""
        keys_IB = jnp.stack([jax.vmap(jax.random.fold_in, (0, None))(keys_B, i) for i in range(DRAWS)])
        z_IBZ = jax.vmap(self.sample_prior, (None, 0))(context_BD, keys_IB)
        return z_IBZ.swapaxes(0, 1), jnp.full((context_BD.shape[0], DRAWS), -math.log(DRAWS))

    def sample_posterior(self, context_BD, target_BD, keys_B):
        """The z [B,Z] to inject while PSA trains: z ~ q(z | c, target) - offset."""
        return sample(*self.posterior(context_BD, target_BD), keys_B) - self.offset[...]

    def _standard_context(self, context):
        return (context.astype(jnp.float32) - self.context_mean[...]) / self.context_std[...]


def statistic(value: float, size: int) -> Statistic:
    """`size` equal numbers to begin with."""
    return Statistic(jnp.full(size, value), axes=(None,))


def _gaussian(x):
    mean, logvar = jnp.split(x, 2, axis=-1)
    return mean, jnp.clip(logvar, LOGVAR_MIN, LOGVAR_MAX)


def bind_cvae(cvae_params: dict) -> CVAE:
    """A CVAE over an existing dict of arrays (works inside jit, allocates nothing)."""
    hidden, width = cvae_params["prior_mlp"]["w_in"].shape
    latent = cvae_params["offset"].shape[0]
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: CVAE(width, latent, hidden, rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, cvae_params)


def sample(mean_BZ, logvar_BZ, keys_B):
    """Reparameterised draw [B,Z] from diagonal Gaussians, one random key a row."""
    noise_BZ = jax.vmap(lambda key: jax.random.normal(key, mean_BZ.shape[1:]))(keys_B)
    return mean_BZ + jnp.exp(0.5 * logvar_BZ) * noise_BZ


def kl(mean_q, logvar_q, mean_p, logvar_p):
    """KL(q || p) of diagonal Gaussians per dimension, nats, [..., Z].

    The ELBO has KL(posterior || prior): the posterior comes first (Kingma and Welling 2014, appendix B, with a
    general prior).
    """
    return 0.5 * (logvar_p - logvar_q + jnp.exp(logvar_q - logvar_p) + (mean_q - mean_p) ** 2 * jnp.exp(-logvar_p) - 1)


@struct.dataclass
class Terms:
    """Loss terms of a batch, scalars in nats a row.

    Attributes:
      loss: recon + kl_weight * sum over z of max(kl_z, free_bits).
      recon: 0.5 * squared error of the standardised target, summed over D.
      kl: the true KL(posterior || prior), without weight and free bits.
    """

    loss: jax.Array
    recon: jax.Array
    kl: jax.Array


def elbo_terms(cvae: CVAE, context_BD, target_BD, keys_B, *, kl_weight, free_bits: float) -> Terms:
    """Negative ELBO of a batch under a unit-variance Gaussian decoder, its constant left out.

    Because the squared error is summed over D and halved, kl_weight = 1 is a proper bound. Free bits (Kingma et al.
    2016, eq. 15): a dimension whose batch-mean KL is under `free_bits` nats costs `free_bits`, hence has no gradient
    that would close it.
    """
    q, p = cvae.posterior(context_BD, target_BD), cvae.prior(context_BD)
    error_BD = cvae.decode(context_BD, sample(*q, keys_B)) - cvae.standard_target(target_BD)
    recon = 0.5 * jnp.mean(jnp.sum(error_BD**2, -1))
    kl_Z = jnp.mean(kl(*q, *p), 0)
    return Terms(loss=recon + kl_weight * jnp.sum(jnp.maximum(kl_Z, free_bits)), recon=recon, kl=jnp.sum(kl_Z))


def fit_standardisation(cvae: Any, context_ND, target_ND) -> None:
    """Stores mean and standard deviation of training features, in place. A constant feature keeps a divisor of 1."""
    for x_ND, mean, std in (
        (context_ND, cvae.context_mean, cvae.context_std),
        (target_ND, cvae.target_mean, cvae.target_std),
    ):
        std_D = jnp.std(x_ND, 0)
        mean[...], std[...] = jnp.mean(x_ND, 0), jnp.where(std_D > 1e-6, std_D, 1.0)


def fit_offset(cvae: CVAE, context_ND) -> None:
    """Stores the mean prior mean over training contexts, in place."""
    cvae.offset[...] = jnp.mean(cvae.prior(context_ND)[0], 0)
