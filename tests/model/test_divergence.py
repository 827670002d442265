"""Divergences from a teacher against sums over the vocabulary in float64, their gradients against dense autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.model.divergence import Teacher, over_vocabulary
from iiblpo_jax.model.logprobs import chunked_logprobs, likeliest

B, T, D, G, V, K, TEMPERATURE = 2, 5, 4, 3, 17, 3, 0.7
NEVER = (2, 11)
BETAS = (0.0, 0.3, 0.5, 1.0)


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(0), 6)
    student = jax.random.normal(keys[0], (B, T, D)), jax.random.normal(keys[1], (V, D))
    teacher = jax.random.normal(keys[2], (B, T, G)), jax.random.normal(keys[3], (V, G))
    targets_BT, weights_BT = jax.random.randint(keys[4], (B, T), 3, 9), jax.random.normal(keys[5], (B, T))
    return student, teacher, targets_BT, weights_BT


def distribution(h_BTD, w_VD):
    """float64 probabilities [B,T,V] without those that there are not."""
    logits = np.einsum("btd,vd->btv", np.float64(h_BTD), np.float64(w_VD)) / TEMPERATURE
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    weight[..., list(NEVER)] = 0
    return weight / weight.sum(-1, keepdims=True)


def dense(p, q, beta):
    """Teacher p, student q: the two sums of GKD's definition, or one at the ends."""

    def kl(a, b):
        return np.where(a > 0, a * np.log(np.where(a > 0, a, 1) / np.where(b > 0, b, 1)), 0).sum(-1)

    if beta in (0, 1):
        return kl(p, q) if beta == 0 else kl(q, p)
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def coarse(p, tokens):
    """The K tokens and all others together."""
    top = np.take_along_axis(p, tokens, -1)
    return np.concatenate([top, 1 - top.sum(-1, keepdims=True)], -1)


@jax.jit
def teacher_top(teacher):
    return likeliest(*teacher, K, temperature=TEMPERATURE, never=NEVER)


def divergence(student, targets_BT, teacher, **how):
    return chunked_logprobs(*student, targets_BT, temperature=TEMPERATURE, never=NEVER, teacher=teacher, **how)[2]


@pytest.mark.parametrize("beta", BETAS)
def test_the_whole_vocabulary(inputs, beta):
    student, teacher, targets_BT, _ = inputs
    found_BT = divergence(student, targets_BT, Teacher((teacher[0],), teacher[1], beta))
    np.testing.assert_allclose(found_BT, dense(distribution(*teacher), distribution(*student), beta), atol=2e-6)


@pytest.mark.parametrize("beta", BETAS)
def test_the_likeliest_tokens_and_the_rest_as_one(inputs, beta):
    student, teacher, targets_BT, _ = inputs
    token_BTK, logp_BTK = teacher_top(teacher)
    p, q = distribution(*teacher), distribution(*student)
    np.testing.assert_array_equal(token_BTK, np.argsort(-p, -1)[..., :K])
    np.testing.assert_allclose(np.exp(logp_BTK), np.take_along_axis(p, np.asarray(token_BTK), -1), atol=1e-6)
    found_BT = divergence(student, targets_BT, Teacher((token_BTK, logp_BTK), None, beta))
    wanted_BT = dense(coarse(p, np.asarray(token_BTK)), coarse(q, np.asarray(token_BTK)), beta)
    np.testing.assert_allclose(found_BT, wanted_BT, rtol=2e-5, atol=1e-6)
    assert (found_BT <= dense(p, q, beta) + 1e-6).all()


def derivative(h_BTD, w_VD, teacher, beta, weights_BT):
    """d sum(weights * JSD) / d (h, w) by hand: the softmax Jacobian of d JSD / d q."""
    p, q = distribution(*teacher), distribution(h_BTD, w_VD)
    if beta == 0:
        d_q = -p / np.where(q > 0, q, 1)
    else:
        m = p if beta == 1 else beta * p + (1 - beta) * q
        with np.errstate(divide="ignore", invalid="ignore"):
            d_q = (1 if beta == 1 else 1 - beta) * np.where(q > 0, np.log(q / m), 0)  # the other terms add up to 0
    d_logit = q * (d_q - (q * d_q).sum(-1, keepdims=True)) * np.float64(weights_BT)[..., None] / TEMPERATURE
    return d_logit @ np.float64(w_VD), np.einsum("btv,btd->vd", d_logit, np.float64(h_BTD))


@pytest.mark.parametrize(("beta", "chunk"), [(0.0, 2), (0.3, 4), (1.0, None)])
def test_gradients_are_the_closed_form_whatever_the_chunks(inputs, beta, chunk):
    student, (g_BTD, w_VD), targets_BT, weights_BT = inputs

    def loss(h, w, g, theirs):
        return (weights_BT * divergence((h, w), targets_BT, Teacher((g,), theirs, beta), chunk=chunk)).sum()

    *found, d_g, d_theirs = jax.grad(loss, argnums=(0, 1, 2, 3))(*student, g_BTD, w_VD)
    for got, wanted in zip(found, derivative(*student, (g_BTD, w_VD), beta, weights_BT), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert not d_g.any() and not d_theirs.any()


def test_nothing_is_learnt_from_a_teacher_who_says_the_same(inputs):
    student, _, targets_BT, _ = inputs
    top = likeliest(*student, K, temperature=TEMPERATURE, never=NEVER)
    for beta in (0.0, 0.5):
        for teacher in (Teacher((student[0],), student[1], beta), Teacher(top, None, beta)):
            value, grad = jax.value_and_grad(lambda h, t=teacher: divergence((h, student[1]), targets_BT, t).sum())(
                student[0]
            )
            assert abs(value) < 2e-6 and np.abs(grad).max() < 2e-6


def test_log_probs_are_those_without_a_teacher(inputs):
    student, teacher, targets_BT, _ = inputs
    alone = chunked_logprobs(*student, targets_BT, temperature=TEMPERATURE, never=NEVER)
    beside = chunked_logprobs(
        *student, targets_BT, temperature=TEMPERATURE, never=NEVER, teacher=Teacher((teacher[0],), teacher[1], 0.5)
    )
    for a, b in zip(alone, beside[:2], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_memory_does_not_grow_with_the_vocabulary():
    """chunk * V held fixed: whole [tokens, V] of student and teacher would grow by 60 MB each."""

    def temporaries(v, chunk):
        def loss(h, w, g, theirs, targets):
            return chunked_logprobs(h, w, targets, chunk=chunk, teacher=Teacher((g,), theirs, 0.5))[2].sum()

        h, w = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((1, 1024, 8), (v, 8)))
        targets = jax.ShapeDtypeStruct((1, 1024), jnp.int32)
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(h, w, h, w, targets).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(16_000, 4) - temporaries(1_000, 64) <= 4 * 4 * 8 * 15_000  # copies of the weights


def test_ids_that_the_teacher_pads_differently():
    w_VD = jnp.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(over_vocabulary(w_VD, 2), w_VD[:2])
    np.testing.assert_array_equal(over_vocabulary(w_VD, 5), np.pad(w_VD, [(0, 2), (0, 0)]))
