"""The reward head, its loss, and what is typical: against closed forms, NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial
import scipy.stats

from iiblpo_jax.model.reward import RIDGE, RewardHead, make_head, moments, pair_terms, typical

D, Z = 5, 3


@pytest.fixture(scope="module")
def head():
    rng = np.random.default_rng(0)
    return RewardHead(
        encode_YD=jnp.asarray(rng.normal(size=(2 * Z, D)), jnp.float32),
        value_Z=jnp.asarray(rng.normal(size=Z), jnp.float32),
    )


def test_loss_and_kl_are_the_formula(head):
    rng = np.random.default_rng(1)
    h_N2D, noise_N2Z = rng.normal(size=(4, 2, D)), rng.normal(size=(4, 2, Z))
    loss_N, kl_N = pair_terms(head, jnp.asarray(h_N2D, jnp.float32), jnp.asarray(noise_N2Z, jnp.float32))
    encode, value = np.float64(head.encode_YD), np.float64(head.value_Z)
    for n in range(4):
        rewards, kls = [], []
        for side in range(2):
            mean, logvar = encode[:Z] @ h_N2D[n, side], np.clip(encode[Z:] @ h_N2D[n, side], -8, 4)
            rewards.append(value @ (mean + np.exp(logvar) ** 0.5 * noise_N2Z[n, side]))
            # of two univariate normals: log(1 / s) + (s^2 + m^2) / 2 - 1 / 2, from their densities
            kls.append(np.sum(-np.log(np.exp(logvar) ** 0.5) + (np.exp(logvar) + mean**2) / 2 - 0.5))
        np.testing.assert_allclose(loss_N[n], -np.log(1 / (1 + np.exp(rewards[1] - rewards[0]))), rtol=1e-4)
        np.testing.assert_allclose(kl_N[n], np.mean(kls), rtol=1e-4)


def test_the_kl_is_that_of_a_numerical_integral():
    """One dimension, mean .7 and variance e^-1: the integral of q log(q / p)."""
    head = RewardHead(encode_YD=jnp.array([[0.7], [-1.0]]), value_Z=jnp.array([1.0]))
    _, kl_1 = pair_terms(head, jnp.ones((1, 2, 1)), jnp.zeros((1, 2, 1)))
    x = np.linspace(-12, 12, 200_001)
    q, p = scipy.stats.norm(0.7, np.exp(-0.5)), scipy.stats.norm()
    np.testing.assert_allclose(kl_1[0], np.trapezoid(q.pdf(x) * (q.logpdf(x) - p.logpdf(x)), x), rtol=1e-5)


def test_a_fresh_head_has_unit_noise(head):
    mean, logvar = make_head(jax.random.key(0), width=64, latent=32).encode(jnp.ones((10, 64)))
    assert not logvar.any() and 0.5 < jnp.std(mean) < 1.5


def test_the_distance_is_mahalanobis_and_its_tail_chi_square():
    rng = np.random.default_rng(2)
    mixing = rng.normal(size=(Z, Z))
    mean_NZ = rng.normal(size=(4000, Z)) @ mixing.T + 3
    mean_Z, covariance_ZZ = moments(mean_NZ)
    np.testing.assert_allclose(mean_Z, mean_NZ.sum(0) / 4000)
    centred = mean_NZ - mean_Z
    np.testing.assert_allclose(covariance_ZZ, centred.T @ centred / 3999)
    those = typical(mean_Z, covariance_ZZ)
    inverse = np.linalg.inv(covariance_ZZ + RIDGE * np.eye(Z))
    wanted = [scipy.spatial.distance.mahalanobis(x, mean_Z, inverse) for x in mean_NZ[:50]]
    distance_N = those.distance(jnp.asarray(mean_NZ, jnp.float32))
    np.testing.assert_allclose(distance_N[:50], wanted, rtol=1e-4)
    np.testing.assert_allclose(those.freedom, Z, rtol=1e-4)
    np.testing.assert_allclose(those.tail(distance_N), scipy.stats.chi2.sf(distance_N**2, Z), rtol=1e-3, atol=1e-6)
    # of Gaussian latents a hundredth are outliers at one percent: 40 of 4000, 6 more or less
    assert 0.006 < (those.tail(distance_N) < 0.01).mean() < 0.014


def test_a_closed_dimension_costs_a_degree_of_freedom():
    """Variances 4, 1e-6 (as much as the ridge) and 0: 1 + 1/2 + 0 degrees, and d^2 by hand."""
    those = typical(np.zeros(3), np.diag([4.0, 1e-6, 0.0]))
    np.testing.assert_allclose(those.freedom, 1.5, rtol=1e-5)
    np.testing.assert_allclose(those.distance(jnp.array([2.0, 1e-3, 2e-3])), np.sqrt(1 + 0.5 + 4), rtol=1e-4)
