"""A reward from a language model through an information bottleneck, and how far a response is from what it has seen.

InfoRM (Miao et al., arXiv 2402.09345) is a Bradley-Terry reward model whose reward reads a stochastic latent:

    h              final-norm hidden state of a row's last token
    (mu, log s^2)  = W h
    z              mu + s eps while it is trained, mu afterwards
    r              v z
    loss           -log sigmoid(r_chosen - r_rejected) + beta KL(N(mu, s^2) || N(0, I))

A policy that exploits the model moves away from the latents of the one it began as (IBL and MOP, arXiv 2510.13694):

    d^2            (mu - m)^T (C + RIDGE I)^-1 (mu - m), m and C the moments of the initial policy's responses
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from iiblpo_jax.model.adapters.adapted import Weights
from iiblpo_jax.model.steering.cvae import LOGVAR_MAX, LOGVAR_MIN, kl

RIDGE = 1e-6  # added to every variance of C


@struct.dataclass
class RewardHead:
    """What stands on the backbone: W [2Z,D], the rows of mu first, and v [Z]."""

    encode_YD: jax.Array
    value_Z: jax.Array

    def encode(self, h):
        """(mu [..., Z], log s^2 [..., Z]) of hidden states [..., D]; float32."""
        mean, logvar = jnp.split(h.astype(jnp.float32) @ self.encode_YD.T, 2, axis=-1)
        return mean, jnp.clip(logvar, LOGVAR_MIN, LOGVAR_MAX)

    def reward(self, z):
        """r [...] of latents [..., Z], a log-odds: r of one response minus r of another is how sure it is of them."""
        return z @ self.value_Z


@struct.dataclass
class Typical:
    """The latents of the initial policy's responses: mean m, W with W (C + RIDGE I) W^T = I, and E d^2 of them."""

    mean_Z: jax.Array
    white_ZZ: jax.Array
    freedom: jax.Array

    def distance(self, mean):
        """The Mahalanobis distance d [...] of latents [..., Z]."""
        return jnp.linalg.norm((mean - self.mean_Z) @ self.white_ZZ.T, axis=-1)

    def tail(self, distance):
        """Probability [...] that a chi-square variable exceeds d^2.

        Its degrees of freedom are what d^2 is on average over the initial policy's responses, trace C (C + RIDGE I)^-1:
        Z less the dimensions that the bottleneck has closed.
        """
        return jax.scipy.special.gammaincc(self.freedom / 2, jnp.square(distance) / 2)


@struct.dataclass
class RewardModel:
    """Weights of a decoder, of the head on it, and what is typical."""

    backbone: Weights
    head: RewardHead
    typical: Typical


def make_head(key, *, width: int, latent: int) -> RewardHead:
    """A fresh head: mu of unit size, s = 1, v of unit length on average."""
    mean_key, value_key = jax.random.split(key)
    mean_ZD = jax.random.normal(mean_key, (latent, width)) * width**-0.5
    value_Z = jax.random.normal(value_key, (latent,)) * latent**-0.5
    return RewardHead(encode_YD=jnp.concatenate([mean_ZD, jnp.zeros_like(mean_ZD)]), value_Z=value_Z)


def pair_terms(head: RewardHead, h_N2D: jax.Array, noise_N2Z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(-log sigmoid(r_chosen - r_rejected) [N], KL to N(0, I) [N]), nats a pair.

    Args:
      head: see above.
      h_N2D: hidden states of the chosen and the rejected response.
      noise_N2Z: eps.

    The KL is summed over Z and is the mean of the two responses. The released code takes its mean over Z too, so that
    its beta is Z times ours.
    """
    mean_N2Z, logvar_N2Z = head.encode(h_N2D)
    reward_N2 = head.reward(mean_N2Z + jnp.exp(0.5 * logvar_N2Z) * noise_N2Z)
    kl_N2 = jnp.sum(kl(mean_N2Z, logvar_N2Z, 0.0, 0.0), axis=-1)
    return jax.nn.softplus(reward_N2[:, 1] - reward_N2[:, 0]), kl_N2.mean(1)


def moments(mean_NZ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """m [Z] and C [Z,Z] of latents, in float64."""
    mean_NZ = np.asarray(mean_NZ, np.float64)
    return mean_NZ.mean(0), np.cov(mean_NZ, rowvar=False, ddof=1).reshape(mean_NZ.shape[1], -1)


def typical(mean_Z: np.ndarray, covariance_ZZ: np.ndarray) -> Typical:
    """`Typical` of a mean and a covariance; worked out in float64."""
    covariance_ZZ = np.asarray(covariance_ZZ, np.float64)
    ridged_ZZ = covariance_ZZ + RIDGE * np.eye(len(covariance_ZZ))
    numbers = mean_Z, np.linalg.inv(np.linalg.cholesky(ridged_ZZ)), np.trace(np.linalg.solve(ridged_ZZ, covariance_ZZ))
    return Typical(*(jnp.asarray(x, jnp.float32) for x in numbers))
