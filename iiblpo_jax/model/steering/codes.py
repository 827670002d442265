"""Discrete latents: z names the kind of continuation that follows (README "Method", latent.kind = codes).

    code    c(target)      = the nearest of Z centres to how the next tokens surprise (features.embedding_residual)
    prior   p(c | context) = softmax of an MLP
    z       sqrt(Z) * (one-hot of c - mean prior probabilities)

The codes are fixed by k-means before anything listens to them, so they cannot collapse. `Codes` is used like a `CVAE`:
the rollout asks for z's from the prior, the training of PSA for those of the posterior, which here is one code. Left
out on purpose: codes learnt through the language model.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from iiblpo_jax.model.steering.cvae import CVAE, MLP, Statistic, bind_cvae, fit_standardisation, statistic


class Codes(nnx.Module):
    """Prior and posterior over Z codes for a language model of width D. Methods take any leading axes.

    Attributes:
      centres: [Z,D], of standardised targets; similar codes stand side by side.
      offset: [Z], mean prior probabilities over training contexts. A constant part of z would be an adapter.
    """

    def __init__(self, width: int, latent: int, hidden: int, *, rngs: nnx.Rngs):
        self.width, self.latent, self.hidden = width, latent, hidden
        self.prior_mlp = MLP(width, hidden, latent, rngs=rngs)
        self.context_mean, self.context_std = statistic(0.0, width), statistic(1.0, width)
        self.target_mean, self.target_std = statistic(0.0, width), statistic(1.0, width)
        self.centres = Statistic(jnp.zeros((latent, width)), axes=(None, None))
        self.offset = statistic(1.0 / latent, latent)

    def prior_logits(self, context):
        """log p(c | context) up to a constant, [..., Z]."""
        return self.prior_mlp(self.standard_context(context))

    def code(self, target):
        """The code of a continuation, int [...]."""
        return nearest(self.standard_target(target), self.centres[...])

    def vector(self, code):
        """The z [..., Z] to inject for a code."""
        return jnp.sqrt(1.0 * self.latent) * (jax.nn.one_hot(code, self.latent) - self.offset[...])

    def from_uniform(self, context_BD, uniform_BZ, power: float = 1.0):
        """The z [B,Z] that numbers in [0, 1) stand for: the inverse distribution function of p(c | context)^power,
        normalised, at column 0; power 1 is the prior, 0 makes all codes alike."""
        cumulative_BZ = jnp.cumsum(jax.nn.softmax(power * self.prior_logits(context_BD)), -1)
        code_B = (uniform_BZ[:, :1] * cumulative_BZ[:, -1:] >= cumulative_BZ).sum(-1)
        return self.vector(jnp.minimum(code_B, self.latent - 1))

    def sample_prior(self, context_BD, keys_B, power: float = 1.0):
        """The z [B,Z] to inject: c ~ p(c | context)^power. Row b depends on context_BD[b] and keys_B[b] alone."""
        return self.from_uniform(context_BD, uniforms(keys_B, self.latent), power)

    def sample_posterior(self, context_BD, target_BD, keys_B):
        """The z [B,Z] of the code of each continuation; nothing is drawn."""
        return self.vector(self.code(target_BD))

    def support(self, context_BD, keys_B):
        """All z's [B,Z,Z] of the prior and the logarithms of their probabilities [B,Z]; nothing is drawn."""
        z_ZZ = self.vector(jnp.arange(self.latent))
        logp_BZ = jax.nn.log_softmax(self.prior_logits(context_BD))
        return jnp.broadcast_to(z_ZZ, (*logp_BZ.shape, self.latent)), logp_BZ

    def standard_context(self, context):
        """(context - mean) / std, [..., D]."""
        return (context.astype(jnp.float32) - self.context_mean[...]) / self.context_std[...]

    def standard_target(self, target):
        """(target - mean) / std, [..., D]."""
        return (target - self.target_mean[...]) / self.target_std[...]


FAR = 1e30  # squared distance to the nearest of no centres


def bind_codes(params: dict) -> Codes:
    """Codes over an existing dict of arrays (works inside jit, allocates nothing)."""
    hidden, width = params["prior_mlp"]["w_in"].shape
    latent = params["offset"].shape[0]
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: Codes(width, latent, hidden, rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, params)


KINDS = {"gaussian": CVAE, "codes": Codes}


def bind_latent(params: dict) -> CVAE | Codes:
    """The CVAE or the Codes that a dict of arrays belongs to."""
    return bind_codes(params) if "centres" in params else bind_cvae(params)


def uniforms(keys_B, width: int):
    """Numbers [B,width] in [0, 1), one random key a row."""
    return jax.vmap(lambda key: jax.random.uniform(key, (width,)))(keys_B)


def stratified(keys_B, nth_B, n: int, width: int):
    """Numbers [B,width] in [0, 1) for the siblings of trees: each alone is uniform, together they are spread evenly.

    Sibling j of n has (u + pi(j) / n) mod 1 with one u and one permutation pi a tree and column (systematic sampling;
    a Latin hypercube over the columns).

    Args:
      keys_B: key of the tree; siblings have the same.
      nth_B: j, from 0 to n - 1.
      n: siblings of a tree.
      width: columns.
    """

    def row(key, nth):
        start, order = jax.random.split(key)
        place_NW = jax.random.uniform(order, (n, width)).argsort(0)
        return (jax.random.uniform(start, (width,)) + place_NW[nth] / n) % 1.0

    return jax.vmap(row)(keys_B, nth_B)


def nearest(x, centres_CD):
    """Index of the nearest centre of every x [..., D]."""
    return jnp.argmin((centres_CD**2).sum(-1) - 2 * x @ centres_CD.T, axis=-1)


def kmeans(x_ND, centres: int, key, *, iterations: int = 30):
    """Centres [C,D] of Lloyd's algorithm from a k-means++ start (Arthur and Vassilvitskii 2007).

    A centre that loses all its rows stays where it is. Centres come back in the order of their first principal
    component.
    """

    def start(chosen, key_and_index):
        (key, i), (centres_CD, distance_N) = key_and_index, chosen
        new_D = x_ND[jax.random.categorical(key, jnp.log(distance_N))]
        return (centres_CD.at[i].set(new_D), jnp.minimum(distance_N, ((x_ND - new_D) ** 2).sum(-1))), None

    def lloyd(centres_CD, _):
        own_NC = jax.nn.one_hot(nearest(x_ND, centres_CD), centres)
        count_C1 = own_NC.sum(0)[:, None]
        return jnp.where(count_C1 > 0, own_NC.T @ x_ND / jnp.maximum(count_C1, 1), centres_CD), None

    nothing = jnp.zeros((centres, x_ND.shape[1])), jnp.full(x_ND.shape[0], FAR)  # equal distances: a uniform draw
    (centres_CD, _), _ = jax.lax.scan(start, nothing, (jax.random.split(key, centres), jnp.arange(centres)))
    centres_CD, _ = jax.lax.scan(lloyd, centres_CD, length=iterations)
    around_CD = centres_CD - centres_CD.mean(0)
    direction_D = jnp.linalg.svd(around_CD, full_matrices=False)[2][0]
    return centres_CD[jnp.argsort(around_CD @ direction_D)]


def fit_codes(codes: Codes, context_ND, target_ND, key) -> None:
    """Stores standardisation and centres of training features, in place."""
    fit_standardisation(codes, context_ND, target_ND)
    codes.centres[...] = jax.jit(kmeans, static_argnums=1)(codes.standard_target(target_ND), codes.latent, key)


def fit_code_offset(codes: Codes, context_ND) -> None:
    """Stores the mean prior probabilities over training contexts, in place."""
    codes.offset[...] = jax.nn.softmax(codes.prior_logits(context_ND)).mean(0)
