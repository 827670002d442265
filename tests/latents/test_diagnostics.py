"""Diagnostics against cases whose numbers are known without running them."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from iiblpo_jax.latents import diagnostics
from iiblpo_jax.latents.diagnostics import cvae_metrics, diagnose, gain_norm, show, verdict
from iiblpo_jax.latents.features import Continuation, extract, rows_of
from iiblpo_jax.model.decoder import bind, hidden_states, logits, params_of, project
from iiblpo_jax.model.steering.cvae import CVAE, bind_cvae
from iiblpo_jax.model.steering.psa import bind_psa, latent_inputs, steer_rows
from iiblpo_jax.rollout.branching import Branching

HOW = {"temperature": 0.7, "half_life": 5.0, "strength": 1.0}
Z = 4


@pytest.fixture(scope="module")
def continuations():
    rng = np.random.default_rng(0)

    def draw(n):
        return rng.integers(0, 23, n).tolist()

    return [Continuation(i, draw(2 + i % 3), draw(4 + i), True) for i in range(5)]


def padded(c):
    """One row of a common length: what is on the right changes nothing and saves compilations."""
    return jnp.array([(c.prompt + c.response + [0] * 12)[:12]])


@pytest.fixture(scope="module")
def pairs(tiny_config, tiny_params, continuations):
    key, branching = jax.random.key(0), Branching(fraction=0.3, min_suffix=1)
    return extract(tiny_config, tiny_params, rows_of(continuations), key, temperature=0.7, branching=branching)


@pytest.fixture(scope="module")
def cvae():
    return CVAE(16, Z, 8, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def measured(tiny_config, tiny_params, tiny_psa_params, cvae, pairs):
    psa = bind_psa(tiny_psa_params, tiny_config)
    return diagnose(tiny_config, tiny_params, cvae, psa, pairs, jax.random.key(7), **HOW)


def test_plain_nll_is_that_of_whole_logits(tiny_config, tiny_params, continuations, pairs, measured):
    total = count = 0
    for n, c in enumerate(continuations):
        lg = np.asarray(logits(bind(tiny_config, tiny_params), padded(c)))[0] / 0.7
        logp = lg - np.log(np.exp(lg).sum(-1, keepdims=True))
        for t in range(int(pairs.cut_N[n]), len(c.response)):
            total, count = total - logp[len(c.prompt) + t - 1, c.response[t]], count + 1
    assert measured["latent/nll_plain"] == pytest.approx(total / count, abs=1e-4)


def test_kl_between_is_that_of_two_prior_draws(
    tiny_config, tiny_params, tiny_psa_params, continuations, pairs, cvae, measured
):
    model, psa, values = bind(tiny_config, tiny_params), bind_psa(tiny_psa_params, tiny_config), []
    for n, c in enumerate(continuations):
        key, cut = jax.random.fold_in(jax.random.key(7), n), int(pairs.cut_N[n])
        tokens, prompt_len = padded(c), len(c.prompt)
        logp = []
        for i in range(2):
            z_1Z = cvae.sample_prior(pairs.context_ND[n : n + 1], jax.random.fold_in(key, i)[None])
            latent = latent_inputs(
                z_1Z[:, None], jnp.array([[cut]]), jnp.array([prompt_len]), tokens.shape[1], half_life=5.0, strength=1.0
            )
            inject = steer_rows(psa, model.config.n_layers, latent)
            h_D = hidden_states(model, tokens, inject=inject)[0, prompt_len + cut - 1]
            logp.append(np.asarray(jax.nn.log_softmax(project(model, h_D) / 0.7), np.float64))
        values.append(np.sum(np.exp(logp[0]) * (logp[0] - logp[1])))
    assert measured["latent/kl_between"] == pytest.approx(np.mean(values), rel=1e-3)
    assert measured["latent/kl_between"] > 0


@pytest.mark.usefixtures("optimised")  # equal rows are equal to the bit
def test_a_psa_without_strength_changes_nothing(tiny_config, tiny_params, tiny_psa_params, cvae, pairs):
    psa = bind_psa(tiny_psa_params, tiny_config)
    off = diagnose(tiny_config, tiny_params, cvae, psa, pairs, jax.random.key(7), **{**HOW, "strength": 0.0})
    assert off["latent/kl_between"] == 0
    assert off["latent/nll_prior"] == pytest.approx(off["latent/nll_plain"], abs=1e-6)
    assert "IGNORED" in verdict(off)


def test_cvae_metrics_by_hand():
    """Decoder output 0, prior N(b, 1) for every c, posterior N(target_0, 1): the KL and the ELBO follow."""
    d, n = 3, 400
    cvae = bind_cvae(jax.tree.map(jnp.zeros_like, params_of(CVAE(d, 2, 4, rngs=nnx.Rngs(0)))))
    cvae.context_std[...], cvae.target_std[...] = jnp.ones(d), jnp.ones(d)
    cvae.prior_mlp.b_out[...] = jnp.array([3.0, 4.0, 0.0, 0.0])
    cvae.offset[...] = jnp.array([3.0, 0.0])
    post = cvae.posterior_mlp  # unit 0 of the ReLUs carries +target_0, unit 1 carries -target_0
    post.w_in[...] = jnp.zeros((4, 2 * d)).at[0, d].set(1).at[1, d].set(-1)
    post.w_mid[...] = jnp.eye(4)
    post.w_out[...] = jnp.zeros((4, 4)).at[0, 0].set(1).at[0, 1].set(-1)
    target = np.random.default_rng(0).normal(size=(n, d)).astype(np.float32)
    got = cvae_metrics(cvae, jnp.zeros((n, d)), jnp.array(target), jax.random.split(jax.random.key(0), n))
    kl = 0.5 * ((target[:, 0] - 3) ** 2).mean() + 0.5 * 4**2
    assert got["latent/kl"] == pytest.approx(kl, rel=1e-4)
    elbo = -0.5 * (target**2).sum(-1).mean() - kl - 0.5 * d * np.log(2 * np.pi)
    assert got["latent/elbo"] == pytest.approx(elbo, rel=1e-4)
    assert got["latent/active_units"] == 1  # the second posterior mean is constant
    assert got["latent/prior_norm_raw"] == pytest.approx(5.0) and got["latent/prior_norm"] == pytest.approx(4.0)


def test_gain_norm_is_the_frobenius_norm():
    assert gain_norm({"gain": jnp.array([[[3.0, 0.0]], [[0.0, 4.0]]])}) == pytest.approx(5.0)


@pytest.mark.parametrize(
    "kl, posterior, word",
    [(0.005, 0.999, "IGNORED"), (0.005, 0.9, "IGNORED at the branch"), (0.5, 0.999, "NOISE"), (0.5, 0.9, "z is heard")],
)
def test_the_verdict_says_it_in_words(kl, posterior, word):
    nll = {"latent/nll_plain": 1.0, "latent/nll_prior": 1.2, "latent/nll_posterior": posterior}
    sentence = verdict({**nll, "latent/kl_between": kl})
    assert word in sentence
    assert ("saves 10.0%" in sentence and "+20.0%" in sentence) == (word == "z is heard")


def test_the_table_shows_every_metric(measured):
    out = io.StringIO()
    show(measured, Console(file=out, width=120))
    for name, meaning in diagnostics.ROWS:
        if name not in measured:
            continue
        assert name in out.getvalue() and meaning in out.getvalue()
    assert verdict(measured)[:20] in out.getvalue()
    only_codes = {"latent/code_entropy", "latent/code_nll"}
    assert set(measured) == {name for name, _ in diagnostics.ROWS} - only_codes
