"""The conditional VAE against closed forms, numerical integration and plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from iiblpo_jax.model.decoder import params_of
from iiblpo_jax.model.steering import cvae as cvae_lib
from iiblpo_jax.model.steering.cvae import CVAE, bind_cvae, elbo_terms, fit_offset, fit_standardisation, kl, sample

D, Z, HIDDEN, B = 6, 3, 16, 5


@pytest.fixture
def cvae():
    return CVAE(D, Z, HIDDEN, rngs=nnx.Rngs(0))


@pytest.fixture
def features():
    rng = np.random.default_rng(0)
    return rng.normal(2.0, 3.0, (B, D)).astype(np.float32), rng.normal(-1.0, 0.5, (B, D)).astype(np.float32)


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def density(x, mean, logvar):
    return np.exp(-0.5 * (x - mean) ** 2 / np.exp(logvar)) / np.sqrt(2 * np.pi * np.exp(logvar))


def mlp(x, p):
    x = np.maximum(x @ np.asarray(p["w_in"]).T + np.asarray(p["b_in"]), 0)
    x = np.maximum(x @ np.asarray(p["w_mid"]).T + np.asarray(p["b_mid"]), 0)
    return x @ np.asarray(p["w_out"]).T + np.asarray(p["b_out"])


@pytest.mark.parametrize("q, p", [((0.3, -1.0), (-0.5, 0.4)), ((1.0, 0.5), (1.0, 0.5)), ((-2.0, 0.0), (0.0, -0.7))])
def test_kl_is_the_integral_of_q_log_q_over_p(q, p):
    x = np.linspace(-20, 20, 200_001)
    dq, dp = density(x, *q), density(x, *p)
    integral = np.trapezoid(np.where(dq > 1e-300, dq * (np.log(dq + 1e-320) - np.log(dp + 1e-320)), 0), x)
    np.testing.assert_allclose(float(kl(*q, *p)), integral, atol=1e-5)


def test_kl_agrees_with_monte_carlo_and_is_not_symmetric():
    q, p = (jnp.array([0.5]), jnp.array([-1.0])), (jnp.array([-0.5]), jnp.array([0.5]))
    z = np.random.default_rng(1).normal(0.5, np.exp(-0.5), 400_000)
    estimate = np.mean(np.log(density(z, 0.5, -1.0)) - np.log(density(z, -0.5, 0.5)))
    assert abs(float(kl(*q, *p)[0]) - estimate) < 0.01
    assert abs(float(kl(*q, *p)[0]) - float(kl(*p, *q)[0])) > 0.5


def test_moments_are_the_mlps_of_standardised_inputs(cvae, features):
    fit_standardisation(cvae, *map(jnp.asarray, features))
    c, t = ((x - x.mean(0)) / x.std(0) for x in features)
    params = params_of(cvae)
    mean, logvar = cvae.prior(jnp.asarray(features[0]))
    np.testing.assert_allclose(np.concatenate([mean, logvar], -1), mlp(c, params["prior_mlp"]), atol=1e-4)
    mean, logvar = cvae.posterior(*map(jnp.asarray, features))
    expected = mlp(np.concatenate([c, t], -1), params["posterior_mlp"])
    np.testing.assert_allclose(np.concatenate([mean, logvar], -1), expected, atol=1e-4)


def test_constant_features_are_not_divided_by_zero(cvae):
    fit_standardisation(cvae, jnp.full((4, D), 7.0), jnp.full((4, D), -7.0))
    np.testing.assert_array_equal(cvae.standard_target(jnp.full((2, D), -7.0)), np.zeros((2, D)))
    np.testing.assert_array_equal(cvae.context_std[...], np.ones(D))


def test_log_variances_are_clipped(cvae):
    logvar = cvae.prior(jnp.full((1, D), 1e6))[1]
    assert logvar.min() >= cvae_lib.LOGVAR_MIN and logvar.max() <= cvae_lib.LOGVAR_MAX


def test_samples_depend_on_their_own_row_only(cvae, features):
    context = jnp.asarray(features[0])
    whole = cvae.sample_prior(context, keys(B))
    order = jnp.array([3, 0, 4, 1, 2])
    np.testing.assert_allclose(cvae.sample_prior(context[order], keys(B)[order]), whole[order], atol=1e-6)
    np.testing.assert_allclose(cvae.sample_prior(context[2:3], keys(B)[2:3]), whole[2:3], atol=1e-6)


def test_samples_have_the_stated_moments():
    n, mean, logvar = 20_000, jnp.array([1.0, -2.0]), jnp.array([0.0, 2 * np.log(3.0)])
    z = np.asarray(sample(jnp.tile(mean, (n, 1)), jnp.tile(logvar, (n, 1)), keys(n)))
    np.testing.assert_allclose(z.mean(0), [1.0, -2.0], atol=0.08)
    np.testing.assert_allclose(z.std(0), [1.0, 3.0], rtol=0.03)


def test_offset_centres_what_is_injected(cvae, features):
    context = jnp.asarray(features[0])
    before = cvae.sample_prior(context, keys(B))
    mean = np.asarray(cvae.prior(context)[0]).mean(0)
    fit_offset(cvae, context)
    np.testing.assert_allclose(cvae.offset[...], mean, atol=1e-6)
    np.testing.assert_allclose(cvae.sample_prior(context, keys(B)), before - mean, atol=1e-5)


def test_loss_is_half_squared_error_plus_kl(cvae, features):
    fit_standardisation(cvae, *map(jnp.asarray, features))
    terms = elbo_terms(cvae, *map(jnp.asarray, features), keys(B), kl_weight=0.7, free_bits=0.0)
    c, t = ((x - x.mean(0)) / x.std(0) for x in features)
    p = {
        name: mlp(x, params_of(cvae)[name])
        for name, x in (("prior_mlp", c), ("posterior_mlp", np.concatenate([c, t], -1)))
    }
    mp, lp, mq, lq = *np.split(p["prior_mlp"], 2, -1), *np.split(p["posterior_mlp"], 2, -1)
    noise = np.stack([jax.random.normal(k, (Z,)) for k in keys(B)])
    z = mq + np.exp(lq / 2) * noise
    error = mlp(np.concatenate([c, z], -1), params_of(cvae)["decoder_mlp"]) - t
    divergence = np.sum(0.5 * (lp - lq) + (np.exp(lq) + (mq - mp) ** 2) / (2 * np.exp(lp)) - 0.5, -1).mean()
    np.testing.assert_allclose(terms.recon, 0.5 * (error**2).sum(-1).mean(), rtol=1e-4)
    np.testing.assert_allclose(terms.kl, divergence, rtol=1e-4)
    np.testing.assert_allclose(terms.loss, terms.recon + 0.7 * divergence, rtol=1e-4)


def test_free_bits_floor_each_dimension_and_stop_its_gradient(cvae, features):
    graph, params, rest = nnx.split(cvae, nnx.Param, ...)

    def penalty(params, free_bits):
        model = nnx.merge(graph, params, rest)
        terms = elbo_terms(model, *map(jnp.asarray, features), keys(B), kl_weight=1.0, free_bits=free_bits)
        return terms.loss - terms.recon

    huge = 1e4  # above every KL here
    np.testing.assert_allclose(penalty(params, huge), Z * huge)
    assert all(not g.any() for g in jax.tree.leaves(jax.grad(penalty)(params, huge)))
    context, target = map(jnp.asarray, features)
    per_dim = np.asarray(kl(*cvae.posterior(context, target), *cvae.prior(context))).mean(0)
    floor = float(np.sort(per_dim)[1])
    np.testing.assert_allclose(penalty(params, floor), np.maximum(per_dim, floor).sum(), rtol=1e-4)


def test_bind_restores_weights_and_statistics(cvae, features):
    fit_standardisation(cvae, *map(jnp.asarray, features))
    fit_offset(cvae, jnp.asarray(features[0]))
    again = jax.jit(lambda p: bind_cvae(p).sample_prior(jnp.asarray(features[0]), keys(B)))(params_of(cvae))
    np.testing.assert_allclose(again, cvae.sample_prior(jnp.asarray(features[0]), keys(B)), atol=1e-5)


def test_statistics_are_not_trained_and_every_weight_names_its_axes(cvae):
    _, trained, rest = nnx.split(cvae, nnx.Param, ...)
    assert len(jax.tree.leaves(trained)) == 18 and len(jax.tree.leaves(rest)) == 5
    for _, variable in [*nnx.to_flat_state(trained), *nnx.to_flat_state(rest)]:
        assert len(variable.axes) == variable[...].ndim
