"""Chunked log-probs against a whole softmax; their memory; response log-probs against a token-by-token reading."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.model import logprobs
from iiblpo_jax.model.decoder import bind, logits
from iiblpo_jax.model.logprobs import chunked_logprobs, response_logprobs

B, T, D, V = 3, 7, 5, 19


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(0), 5)
    h_BTD, w_VD = jax.random.normal(keys[0], (B, T, D)), jax.random.normal(keys[1], (V, D))
    targets_BT = jax.random.randint(keys[2], (B, T), 0, V)
    return h_BTD, w_VD, targets_BT, jax.random.normal(keys[3], (B, T)), jax.random.normal(keys[4], (B, T))


def naive(h_BTD, w_VD, targets_BT, temperature):
    logp_BTV = jax.nn.log_softmax(h_BTD @ w_VD.T / temperature)
    logp_BT = jnp.take_along_axis(logp_BTV, targets_BT[..., None], -1)[..., 0]
    return logp_BT, -(jnp.exp(logp_BTV) * logp_BTV).sum(-1)


@pytest.mark.parametrize("chunk", [1, 3, 4, 6, 13, 21, 1000, None])
def test_values_and_gradients_equal_the_naive_ones(inputs, chunk):
    h_BTD, w_VD, targets_BT, a_BT, b_BT = inputs

    def scalar(f):
        def g(h, w):
            logp, entropy = f(h, w)
            return (a_BT * logp + b_BT * entropy).sum(), (logp, entropy)

        return jax.value_and_grad(g, argnums=(0, 1), has_aux=True)

    (_, values), grads = scalar(lambda h, w: chunked_logprobs(h, w, targets_BT, temperature=0.7, chunk=chunk))(
        h_BTD, w_VD
    )
    (_, want), want_grads = scalar(lambda h, w: naive(h, w, targets_BT, 0.7))(h_BTD, w_VD)
    for got, expected in zip(values + grads, want + want_grads, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("logits_per_chunk", [2**26, 3 * 3 * D * B, 1])  # all positions at once, two or three, one
def test_other_tokens_equal_the_naive_ones_in_chunks(inputs, monkeypatch, logits_per_chunk):
    """At positions of which two ask the same state; and without a gradient."""
    h_BUD, w_VD, targets_BT, *_ = inputs
    at_BT, others_BTK = jnp.array([[4, 0, 6, 6, 1]] * B), jax.random.randint(jax.random.key(7), (B, 5, 2), 0, V)
    logp_BUV = jax.nn.log_softmax(h_BUD @ w_VD.T / 0.7)
    logp_BTV = jnp.take_along_axis(logp_BUV, at_BT[..., None], axis=1)
    logp_BT = jnp.take_along_axis(logp_BTV, targets_BT[:, :5, None], -1)[..., 0]
    monkeypatch.setattr(logprobs, "LOGITS_PER_CHUNK", logits_per_chunk)

    def found(h_BUD, w_VD):
        return logprobs.other_logprobs(h_BUD, at_BT, w_VD, targets_BT[:, :5], logp_BT, others_BTK, temperature=0.7)

    np.testing.assert_allclose(found(h_BUD, w_VD), jnp.take_along_axis(logp_BTV, others_BTK, axis=-1), atol=1e-5)
    d_h, d_w = jax.grad(lambda h, w: found(h, w).sum(), argnums=(0, 1))(h_BUD, w_VD)
    assert not d_h.any() and not d_w.any()


def test_entropy_gradient_is_the_closed_form():
    """dH / d logit_v = -p_v (log p_v + H); logits are h itself when W is the identity."""
    h_D = jnp.array([0.3, -1.0, 2.0, 0.0])
    logp_D = jax.nn.log_softmax(h_D)
    entropy = -(jnp.exp(logp_D) * logp_D).sum()
    got = jax.grad(lambda h: chunked_logprobs(h[None, None], jnp.eye(4), jnp.zeros((1, 1), int))[1].sum())(h_D)
    np.testing.assert_allclose(got, -jnp.exp(logp_D) * (logp_D + entropy), atol=1e-6)


def test_extreme_logits_stay_finite():
    h = jnp.array([[[3e4, -3e4]]])
    value, grad = jax.value_and_grad(
        lambda h: sum(x.sum() for x in chunked_logprobs(h, jnp.eye(2), jnp.ones((1, 1), int)))
    )(h)
    assert value == -6e4
    assert np.isfinite(grad).all()


def test_bfloat16_weight_gradient_is_summed_in_float32():
    """1,024 equal tokens in 1,024 chunks: a bfloat16 sum would stall at 256 times the gradient of one."""
    w_VD, h_D = jnp.eye(4, dtype=jnp.bfloat16), jnp.array([1.0, 0.5, -0.5, 0.0], jnp.bfloat16)

    def gradient(tokens):
        h_BTD, targets_BT = jnp.broadcast_to(h_D, (1, tokens, 4)), jnp.zeros((1, tokens), int)
        return jax.grad(lambda w: chunked_logprobs(h_BTD, w, targets_BT, chunk=1)[0].sum())(w_VD).astype(jnp.float32)

    np.testing.assert_allclose(gradient(1024), 1024 * gradient(1), rtol=0.01)


def temp_bytes(function, v, tokens=1024, d=8):
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, tokens, d), (v, d))]
    targets = jax.ShapeDtypeStruct((1, tokens), jnp.int32)

    def scalar(h, w, targets):
        return sum(x.sum() for x in function(h, w, targets))

    compiled = jax.jit(jax.value_and_grad(scalar, argnums=(0, 1))).lower(*shapes, targets).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_compiled_memory_does_not_grow_with_the_vocabulary():
    """With chunk * V held fixed only the [V,D] weight gradient may grow; a whole [tokens,V] grows 16-fold."""
    small, large, d = 1_000, 16_000, 8
    chunked = [
        temp_bytes(lambda h, w, t, c=c: chunked_logprobs(h, w, t, chunk=c), v) for v, c in ((small, 64), (large, 4))
    ]
    weight_growth = 4 * d * (large - small)
    assert chunked[1] - chunked[0] <= 3 * weight_growth
    assert chunked[1] < 4 * 1024 * large / 8
    whole = [temp_bytes(lambda h, w, t: naive(h, w, t, 1.0), v) for v in (small, large)]
    assert whole[1] - whole[0] > 4 * 1024 * (large - small)


def test_response_logprobs_read_the_right_token(tiny_config, tiny_params):
    model = bind(tiny_config, tiny_params)
    rows_NC = jax.random.randint(jax.random.key(3), (3, 9), 0, tiny_config.vocab_size)
    prompt_len_N, t = jnp.array([1, 2, 4]), 5
    logp_NT, entropy_NT = response_logprobs(model, rows_NC, prompt_len_N, t, temperature=0.8)
    logits_NCV = np.asarray(logits(model, rows_NC), np.float64) / 0.8
    for n in range(3):
        for i in range(t):
            at = int(prompt_len_N[n]) + i
            p_V = np.exp(logits_NCV[n, at - 1])
            p_V /= p_V.sum()
            np.testing.assert_allclose(logp_NT[n, i], np.log(p_V[rows_NC[n, at]]), atol=2e-5)
            np.testing.assert_allclose(entropy_NT[n, i], -(p_V * np.log(p_V)).sum(), atol=2e-5)


def test_padding_columns_change_nothing(tiny_config, tiny_params):
    model = bind(tiny_config, tiny_params)
    rows_NC = jax.random.randint(jax.random.key(4), (2, 8), 0, tiny_config.vocab_size)
    short = response_logprobs(model, rows_NC, jnp.array([3, 3]), 5)
    padded = response_logprobs(model, jnp.pad(rows_NC, ((0, 0), (0, 6))), jnp.array([3, 3]), 9)
    for a, b in zip(short, padded, strict=True):
        np.testing.assert_allclose(a, b[:, :5], atol=1e-5)
        assert np.isfinite(b).all()


@pytest.mark.parametrize("chunk", [4, None])
def test_tokens_that_a_distribution_does_not_have(inputs, chunk):
    """The softmax over the others, and no gradient to their logits, however likely they were."""
    h_BTD, w_VD, targets_BT, a_BT, b_BT = inputs
    never, kept = (0, 4), np.setdiff1d(np.arange(V), (0, 4))
    w_VD = w_VD.at[4].multiply(30.0)
    targets_BT = jnp.asarray(kept)[targets_BT % len(kept)]

    def scalar(w_VD, f):
        logp, entropy = f(w_VD)
        return (a_BT * logp + b_BT * entropy).sum(), (logp, entropy)

    def of_the_others(w_VD):
        return naive(h_BTD, w_VD[kept], jnp.searchsorted(jnp.asarray(kept), targets_BT), 0.7)

    def without(w_VD):
        return chunked_logprobs(h_BTD, w_VD, targets_BT, temperature=0.7, chunk=chunk, never=never)

    (_, found), d_found = jax.value_and_grad(scalar, has_aux=True)(w_VD, without)
    (_, wanted), d_wanted = jax.value_and_grad(scalar, has_aux=True)(w_VD, of_the_others)
    for x, y in zip((*found, d_found), (*wanted, d_wanted), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
    assert not d_found[jnp.array(never)].any()
    at_BT, others_BTK = jnp.broadcast_to(jnp.arange(T), (B, T)), jnp.broadcast_to(jnp.arange(V), (B, T, V))
    beside_BTV = logprobs.other_logprobs(
        h_BTD, at_BT, w_VD, targets_BT, found[0], others_BTK, temperature=0.7, never=never
    )
    np.testing.assert_allclose(jnp.exp(beside_BTV).sum(-1), 1.0, atol=1e-4)
    assert not jnp.exp(beside_BTV)[..., never].any()
