"""Codes against their definitions: the prior, systematic sampling, k-means on known clusters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from iiblpo_jax.model.decoder import params_of
from iiblpo_jax.model.steering.codes import (
    Codes,
    bind_latent,
    fit_code_offset,
    fit_codes,
    kmeans,
    nearest,
    stratified,
    uniforms,
)
from iiblpo_jax.model.steering.cvae import CVAE

D, Z, HIDDEN = 6, 5, 16


@pytest.fixture(scope="module")
def codes():
    return Codes(D, Z, HIDDEN, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def context():
    return 3 * jax.random.normal(jax.random.key(1), (1, D))


def code_of(codes, z_BZ):
    """The z's are affine images of one-hot vectors."""
    return np.asarray(z_BZ / np.sqrt(Z) + codes.offset[...]).argmax(-1)


def trees(n, k, seed=0):
    """(key of the tree, number of the sibling) of n trees of k."""
    keys = jax.random.split(jax.random.key(seed), n)
    return jnp.repeat(keys, k, axis=0), jnp.tile(jnp.arange(k), n)


def test_independent_draws_follow_the_prior(codes, context):
    n = 40_000
    drawn = code_of(codes, codes.sample_prior(jnp.tile(context, (n, 1)), jax.random.split(jax.random.key(2), n)))
    p = jax.nn.softmax(codes.prior_logits(context))[0]
    assert float(p.max()) > 0.3  # far from uniform
    np.testing.assert_allclose(np.bincount(drawn, minlength=Z) / n, p, atol=0.01)


@pytest.mark.parametrize("k", [2, 3, 8])
def test_every_sibling_follows_the_prior_and_together_they_spread(codes, context, k):
    """Marginals p(c) for each place; expected number of distinct codes sum_c min(1, K p_c), not sum_c 1-(1-p_c)^K."""
    n = 10_000
    keys, nth = trees(n, k)
    z = codes.from_uniform(jnp.tile(context, (n * k, 1)), stratified(keys, nth, k, Z))
    drawn = code_of(codes, z).reshape(n, k)
    p = np.asarray(jax.nn.softmax(codes.prior_logits(context))[0], np.float64)
    for j in range(k):
        np.testing.assert_allclose(np.bincount(drawn[:, j], minlength=Z) / n, p, atol=0.02)
    found = np.mean([len(set(row)) for row in drawn])
    assert found == pytest.approx(np.minimum(1, k * p).sum(), abs=0.03)
    assert found > (1 - (1 - p) ** k).sum() + 0.1
    counts = np.stack([np.bincount(row, minlength=Z) for row in drawn])
    assert np.abs(counts - k * p).max() < 1 + 1e-6  # floor or ceiling of K p_c, in every tree


def test_stratified_numbers_are_a_latin_hypercube():
    k, n = 4, 3000
    keys, nth = trees(n, k)
    u = np.asarray(stratified(keys, nth, k, 3)).reshape(n, k, 3)
    assert ((u >= 0) & (u < 1)).all()
    np.testing.assert_array_equal(np.sort((k * u).astype(int), axis=1), np.tile(np.arange(k)[None, :, None], (n, 1, 3)))
    for j in range(k):
        assert np.quantile(u[:, j], [0.25, 0.5, 0.75], axis=0) == pytest.approx(
            np.tile([[0.25], [0.5], [0.75]], 3), abs=0.04
        )
    correlation = np.corrcoef(u.reshape(-1, 3).T)[np.triu_indices(3, 1)]
    assert np.abs(correlation).max() < 0.05


def test_a_gaussian_prior_reads_the_same_numbers(context):
    """Marginal moments are the prior's; the mean of four siblings varies as the integral over u says."""
    cvae, n, k = CVAE(D, 2, HIDDEN, rngs=nnx.Rngs(0)), 4000, 4
    mean, logvar = (np.asarray(x[0]) for x in cvae.prior(context))
    contexts, (keys, nth) = jnp.tile(context, (n * k, 1)), trees(n, k)
    z = np.asarray(cvae.from_uniform(contexts, stratified(keys, nth, k, 2))).reshape(n, k, 2)
    np.testing.assert_allclose(z.mean(0), np.tile(mean, (k, 1)), atol=0.06 * np.exp(logvar.max() / 2))
    np.testing.assert_allclose(z.std(0), np.tile(np.exp(logvar / 2), (k, 1)), rtol=0.06)
    u = (np.arange(10_000) + 0.5) / 10_000
    expected = np.mean([jax.scipy.special.ndtri((u + j / k) % 1.0) for j in range(k)], axis=0).var()
    assert expected < 0.5 / k  # of independent draws: 1 / k
    np.testing.assert_allclose(z.mean(1).var(0), expected * np.exp(logvar), rtol=0.1)


def test_kmeans_finds_known_clusters():
    rng = np.random.default_rng(0)
    centres = np.array([[-9.0, 0.0], [0.0, 1.0], [10.0, -1.0]])
    own = rng.integers(0, 3, 600)
    x = jnp.array(centres[own] + 0.1 * rng.normal(size=(600, 2)), jnp.float32)
    found = np.asarray(kmeans(x, 3, jax.random.key(0)))
    found = found if found[0, 0] < 0 else found[::-1]  # along the first principal component, either way round
    np.testing.assert_allclose(found, [x[own == c].mean(0) for c in range(3)], atol=1e-4)
    np.testing.assert_array_equal(nearest(x, jnp.array(found)), own)


def test_a_fitted_posterior_is_the_nearest_centre_and_z_is_centred():
    rng = np.random.default_rng(1)
    codes = Codes(D, Z, HIDDEN, rngs=nnx.Rngs(0))
    context, target = (jnp.array(rng.normal(2.0, 3.0, (200, D)), jnp.float32) for _ in range(2))
    fit_codes(codes, context, target, jax.random.key(0))
    fit_code_offset(codes, context)
    standard = (np.asarray(target) - np.asarray(target).mean(0)) / np.asarray(target).std(0)
    expected = ((standard[:, None] - np.asarray(codes.centres[...])) ** 2).sum(-1).argmin(-1)
    np.testing.assert_array_equal(codes.code(target), expected)
    z, logp = codes.support(context, None)
    np.testing.assert_allclose(np.exp(logp).sum(-1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(jnp.einsum("bi,biz->bz", jnp.exp(logp), z).mean(0), np.zeros(Z), atol=1e-5)
    np.testing.assert_allclose(
        codes.sample_posterior(context, target, None), np.sqrt(Z) * (np.eye(Z)[expected] - codes.offset[...]), rtol=1e-5
    )


def test_a_dict_of_arrays_binds_to_its_own_kind(codes, context):
    assert isinstance(bind_latent(params_of(CVAE(D, 2, HIDDEN, rngs=nnx.Rngs(0)))), CVAE)
    again, keys = bind_latent(params_of(codes)), jax.random.split(jax.random.key(3), 1)
    np.testing.assert_array_equal(again.sample_prior(context, keys), codes.sample_prior(context, keys))
    np.testing.assert_array_equal(codes.sample_prior(context, keys), codes.from_uniform(context, uniforms(keys, Z)))
