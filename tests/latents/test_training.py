"""The two training loops: schedules by hand, and a synthetic language in which z is the next token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from iiblpo_jax.common import masked
from iiblpo_jax.data.arithmetic import make_arithmetic
from iiblpo_jax.latents.features import Continuation, Pairs, rows_of
from iiblpo_jax.latents.likelihood import rest_logprobs
from iiblpo_jax.latents.training import Fit, draw, minimise, train_codes, train_cvae, train_psa, warmup
from iiblpo_jax.model.decoder import bind, logits, params_of
from iiblpo_jax.model.files.loading import load_model
from iiblpo_jax.model.logprobs import response_logprobs
from iiblpo_jax.model.steering.codes import Codes
from iiblpo_jax.model.steering.cvae import CVAE, elbo_terms

HOW = {"temperature": 1.0, "half_life": 64.0, "strength": 1.0}


def test_warmup_is_linear_then_constant():
    steps = [float(warmup(step, 0.8, 4)) for step in range(6)]
    np.testing.assert_allclose(steps, [0.2, 0.4, 0.6, 0.8, 0.8, 0.8], rtol=1e-6)
    assert float(warmup(0, 0.8, 0)) == pytest.approx(0.8)


def test_batches_depend_on_the_step_and_cover_the_data():
    key = jax.random.key(0)
    (a, keys_a), (b, _) = draw(key, 3, 500, 10), draw(key, 4, 500, 10)
    np.testing.assert_array_equal(a, draw(key, 3, 500, 10)[0])
    assert not np.array_equal(a, b) and set(np.asarray(a)) == set(range(10))
    assert len(np.unique(jax.random.key_data(keys_a), axis=0)) == 500


def test_minimise_takes_exactly_the_steps_it_was_given():
    """With a gradient that is always 1, Adam's step is lr, scaled by the cosine: the path is lr * sum of cosines."""
    for steps in (3, 50, 60):  # less than, equal to, and more than one chunk

        def loss(w, frozen, step):
            return w * frozen

        weights, losses = minimise(loss, jnp.zeros(()), 1.0, lr=0.1, steps=steps, label="x")
        decay = 0.5 * (1 + np.cos(np.pi * np.arange(steps) / steps))
        np.testing.assert_allclose(weights, -0.1 * decay.sum(), rtol=1e-4)
        assert len(losses) == -(-steps // 50) and np.isfinite(losses).all()


def test_cvae_learns_what_the_context_does_not_tell():
    """target = context + s * direction with a hidden sign s: only z can tell s, and it costs log 2 nats."""
    rng = np.random.default_rng(0)
    n, d = 512, 8
    context = rng.normal(size=(n, d)).astype(np.float32)
    sign = rng.choice([-1.0, 1.0], n)
    target = (0.1 * context + sign[:, None] * np.ones(d)).astype(np.float32)
    cvae, losses = train_cvae(
        jnp.array(context),
        jnp.array(target),
        jax.random.key(0),
        Fit(latent=2, hidden=32, steps=300, batch=128, lr=6e-3),
        free_bits=0.0,
        kl_warmup=100,
    )
    keys = jax.random.split(jax.random.key(1), n)
    terms = elbo_terms(cvae, jnp.array(context), jnp.array(target), keys, kl_weight=1.0, free_bits=0.0)
    assert terms.recon < 0.25 * 0.5 * d  # standardised, the sign alone is nearly all of the unit variance
    assert np.log(2) < terms.kl < 2.5  # a sign is log 2 nats; z cannot carry it for less
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(cvae.offset[...], np.asarray(cvae.prior(jnp.array(context))[0]).mean(0), atol=1e-5)


def test_the_prior_over_codes_learns_their_probabilities():
    """Three clusters whose odds the context decides: 8 to 1 to 1, or 1 to 1 to 8."""
    rng = np.random.default_rng(0)
    n, odds = 4000, np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8]])
    side = rng.integers(0, 2, n)
    code = (rng.random(n)[:, None] > odds[side].cumsum(1)).sum(1)
    target = np.eye(3, 4)[code] * 5 + 0.05 * rng.normal(size=(n, 4))
    codes, losses = train_codes(
        jnp.array(np.eye(2, 4)[side], jnp.float32),
        jnp.array(target, jnp.float32),
        jax.random.key(0),
        Fit(latent=3, hidden=16, steps=200, batch=256, lr=6e-3),
    )
    p = np.asarray(jax.nn.softmax(codes.prior_logits(jnp.eye(2, 4))))
    found = np.asarray(codes.code(jnp.array(np.eye(3, 4) * 5, jnp.float32)))  # which code each cluster became
    assert sorted(found) == [0, 1, 2]
    np.testing.assert_allclose(p[:, found], odds, atol=0.04)
    assert losses[-1] == pytest.approx(-(odds * np.log(odds)).sum(1).mean(), abs=0.05)
    np.testing.assert_allclose(codes.offset[...], p.mean(0), atol=0.02)


# --- PSA --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def oracle(tiny_config):
    """Rows whose rest is one token repeated, and a CVAE whose posterior mean is that token's code (no noise)."""
    rng = np.random.default_rng(0)
    n, v, d, z = 256, tiny_config.vocab_size, tiny_config.d_model, 8
    answer = rng.integers(0, v, n)
    rows = rows_of(
        [Continuation(i, [1, 2, 3], [*rng.integers(0, v, 2).tolist(), a, a, a], True) for i, a in enumerate(answer)]
    )
    code_VZ = rng.normal(size=(v, z)).astype(np.float32)
    pairs = Pairs(
        rows=rows,
        cut_N=jnp.full(n, 2),
        context_ND=jnp.zeros((n, d)),
        target_ND=jnp.array(np.pad(code_VZ[answer], [(0, 0), (0, d - z)])),
    )
    return pairs, _copying_cvae(d, z)


def _copying_cvae(d, z):
    """posterior mean = the first z entries of the target: each hidden unit passes +x or -x through the ReLUs."""
    cvae = CVAE(d, z, 2 * z, rngs=nnx.Rngs(0))
    mlp = cvae.posterior_mlp
    picks_ZD = np.eye(z, 2 * d, k=d)  # the input is [context, target]
    mlp.w_in[...] = jnp.array(np.concatenate([picks_ZD, -picks_ZD]))
    mlp.w_mid[...] = jnp.eye(2 * z)
    mlp.w_out[...] = jnp.array(np.concatenate([np.concatenate([np.eye(z), -np.eye(z)], 1), np.zeros((z, 2 * z))]))
    mlp.b_out[...] = jnp.array([0.0] * z + [-8.0] * z)
    return cvae


def test_the_oracle_posterior_is_the_code(oracle):
    pairs, cvae = oracle
    mean, logvar = cvae.posterior(pairs.context_ND, pairs.target_ND)
    np.testing.assert_allclose(mean, pairs.target_ND[:, :8], atol=1e-5)
    np.testing.assert_allclose(logvar, -8.0)


@pytest.fixture(scope="module")
def trained(tiny_config, tiny_params, oracle):
    pairs, cvae = oracle
    before = jax.tree.map(np.array, tiny_params)
    psa, losses = train_psa(
        tiny_config, tiny_params, cvae, pairs, jax.random.key(0), n_injected=2, steps=800, batch=64, lr=3e-2, **HOW
    )
    jax.tree.map(np.testing.assert_array_equal, tiny_params, before)  # the language model is frozen
    return psa, losses


def nll(config, params, pairs, z, psa):
    logp = rest_logprobs(bind(config, params), pairs, z, psa, **HOW)
    return -float(masked.mean(logp, pairs.rows.mask_from(pairs.cut_N)))


def test_where_z_is_the_next_token_the_nll_nearly_vanishes(tiny_config, tiny_params, oracle, trained):
    """The plain model cannot know the token (log 23 = 3.1 nats at best); z tells it, so injection must be able to."""
    pairs, _ = oracle
    psa, losses = trained
    z = pairs.target_ND[:, :8]
    plain, with_z = (nll(tiny_config, tiny_params, pairs, x, psa) for x in (None, z))
    assert plain > 2.0
    assert with_z < 0.1 * plain and losses[-1] < 0.1 * plain
    shuffled = nll(tiny_config, tiny_params, pairs, jnp.roll(z, 1, axis=0), psa)
    assert shuffled > plain  # somebody else's z misleads: it is z that speaks, not a constant


def test_tokens_before_the_cut_do_not_see_z(tiny_config, tiny_params, oracle, trained):
    pairs, _ = oracle
    rows, model = pairs.rows, bind(tiny_config, tiny_params)
    with_z = rest_logprobs(model, pairs, pairs.target_ND[:, :8], trained[0], **HOW)
    plain, _ = response_logprobs(model, rows.tokens_NC, rows.prompt_len_N, rows.t)
    np.testing.assert_array_equal(with_z[:, :2], plain[:, :2])  # the cut is 2: bit for bit
    assert np.abs(with_z[:, 2:] - plain[:, 2:]).max() > 0.5
    np.testing.assert_allclose(rest_logprobs(model, pairs, None, None, **HOW), plain, atol=1e-6)


def test_z_is_trusted_as_far_as_the_prior_weight_says(tiny_config, tiny_params):
    """One prefix, one token x to follow, two codes: p(x | c) = p(x) (v + (1 - v) [c = c(x)] / p_c).

    Hence the right code saves sum_c p_c log(v + (1 - v) / p_c) nats, and a code of the prior costs their lautum
    information; weighed with the prior, the codes give back the plain model.
    """
    rng, prefix, v, weight = np.random.default_rng(0), [1, 2, 3, 4], tiny_config.vocab_size, 0.8
    p_V = np.asarray(jax.nn.softmax(logits(bind(tiny_config, tiny_params), jnp.array([prefix]))[0, -1]))
    code_V = (np.arange(v) == p_V.argmax()).astype(int)  # the likeliest token, about half of the time, or another
    tokens = rng.choice(v, 4096, p=p_V / p_V.sum())
    rows = rows_of([Continuation(i, prefix[:3], [prefix[3], token], True) for i, token in enumerate(tokens)])
    n, d = len(tokens), tiny_config.d_model
    pairs = Pairs(
        rows=rows, cut_N=jnp.ones(n, jnp.int32), context_ND=jnp.zeros((n, d)), target_ND=jnp.eye(2, d)[code_V[tokens]]
    )
    p_c = np.bincount(code_V[tokens], minlength=2) / n
    codes = Codes(d, 2, 4, rngs=nnx.Rngs(0))
    codes.centres[...], codes.offset[...] = jnp.eye(2, d), jnp.array(p_c)
    codes.prior_mlp.w_out[...], codes.prior_mlp.b_out[...] = jnp.zeros((2, 4)), jnp.log(jnp.array(p_c))
    psa, _ = train_psa(
        tiny_config,
        tiny_params,
        codes,
        pairs,
        jax.random.key(0),
        n_injected=2,
        steps=300,
        batch=256,
        lr=3e-2,
        prior_weight=weight,
        **HOW,
    )

    def logp(z_NZ):
        return np.asarray(rest_logprobs(bind(tiny_config, tiny_params), pairs, z_NZ, psa, **HOW))[:, 1]

    plain, own = logp(None), code_V[tokens]
    each = np.stack([logp(codes.vector(jnp.full(n, c))) for c in range(2)], 1)
    log_trust = np.log(weight + (1 - weight) * np.eye(2) / p_c)
    saved = (each[np.arange(n), own] - plain).mean()
    cost = (plain - each @ p_c).mean()
    assert saved == pytest.approx((p_c * np.diag(log_trust)).sum(), abs=0.02) and saved > 0.1
    assert cost == pytest.approx(-p_c @ log_trust @ p_c, abs=0.02)
    mixture = np.log(np.exp(each) @ p_c)
    assert abs((mixture - plain).mean()) < 0.005


@pytest.mark.slow
@pytest.mark.usefixtures(
    "optimised"
)  # until the module ends: of these programs alone the steps cost more than compiling
def test_a_trained_model_can_be_told_its_next_token():
    """Prefixes of worked sums, then a token drawn from all, whatever a sure model says; z is its one-hot code."""
    model, tokenizer = load_model("package:iiblpo_jax/data/assets/arithmetic")
    rng, v, continuations = np.random.default_rng(0), model.config.vocab_size, []
    for i, problem in enumerate(make_arithmetic(seed=0, train_size=1024).train):
        prompt, rationale = tokenizer.encode(problem.question), tokenizer.encode(problem.rationale)
        continuations.append(Continuation(i, prompt, [*rationale[: rng.integers(1, len(rationale))], 0], False))
    rows = rows_of(continuations)
    last_N = rows.prompt_len_N + rows.length_N - 1  # the 0 to be replaced
    drawn_N = jnp.array(rng.integers(0, v, len(last_N)))
    rows = rows.replace(tokens_NC=rows.tokens_NC.at[jnp.arange(len(last_N)), last_N].set(drawn_N))
    d = model.config.d_model
    pairs = Pairs(
        rows=rows, cut_N=rows.length_N - 1, context_ND=jnp.zeros((len(last_N), d)), target_ND=jnp.eye(v, d)[drawn_N]
    )
    codes = Codes(d, v, 4, rngs=nnx.Rngs(0))
    codes.centres[...] = jnp.eye(v, d)
    train, held_out = pairs[jnp.arange(256, 1024)], pairs[jnp.arange(256)]
    params = params_of(model)
    psa, _ = train_psa(
        model.config, params, codes, train, jax.random.key(0), n_injected=3, steps=200, batch=64, lr=1e-1, **HOW
    )
    plain = nll(model.config, params, held_out, None, psa)
    told = nll(model.config, params, held_out, codes.vector(drawn_N[:256]), psa)
    assert plain > 5.0 and told < 0.1
