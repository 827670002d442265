"""Rotary frequencies and blockwise causal attention against plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.model import attention
from iiblpo_jax.model.config import Llama3Rope, ModelConfig

BASE = {
    "family": "llama",
    "vocab_size": 8,
    "d_model": 8,
    "d_ff": 8,
    "n_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 1,
    "head_dim": 8,
}


def test_llama3_scaling_of_fast_slow_and_middle_frequencies():
    """Wavelengths under 8192/4 keep their frequency, over 8192/1 get 1/8 of it, between them a blend."""
    config = ModelConfig(**BASE, rope_theta=5e5)
    plain = attention.rope_frequencies(config)
    scaling = Llama3Rope(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192)
    scaled = attention.rope_frequencies(ModelConfig(**BASE, rope_theta=5e5, rope_scaling=scaling))
    assert (scaled[:2] == plain[:2]).all() and scaled[3] == pytest.approx(plain[3] / 8)
    smooth = (8192 * plain[2] / (2 * np.pi) - 1) / 3
    blend = plain[2] if smooth > 1 else (1 - smooth) * plain[2] / 8 + smooth * plain[2]
    assert scaled[2] == pytest.approx(blend, rel=1e-5)


def test_rope_makes_scores_depend_on_distance_alone():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
    frequencies = attention.rope_frequencies(ModelConfig(**BASE))

    def score(i, j):
        return float(
            (attention.rope(q, jnp.array([[i]]), frequencies) * attention.rope(k, jnp.array([[j]]), frequencies)).sum()
        )

    assert score(7, 3) == pytest.approx(score(104, 100), abs=1e-4)
    assert abs(score(7, 3) - score(7, 4)) > 1e-3


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("length", [4, 13])
def test_blocks_equal_one_masked_softmax(monkeypatch, window, length):
    monkeypatch.setattr(attention, "QUERY_BLOCK", 4)
    q = jax.random.normal(jax.random.key(0), (2, length, 2, 3, 8))
    k, v = jax.random.normal(jax.random.key(1), (2, 2, 2, length, 8))
    got, norm = attention.causal_attend(q, k, v, window=window)
    rows, cols = np.indices((length, length))
    allowed = (cols <= rows) & (rows - cols < (window or length))
    scores = np.einsum("btgre,bgse->bgrts", q, k) / np.sqrt(8)
    weights = jax.nn.softmax(jnp.where(allowed, scores, -jnp.inf))
    np.testing.assert_allclose(got, np.einsum("bgrts,bgse->btgre", weights, v), atol=1e-5)
    log_total = jax.nn.logsumexp(jnp.where(allowed, scores, -jnp.inf), axis=-1)
    np.testing.assert_allclose(norm, log_total.transpose(0, 3, 1, 2), atol=1e-5)


@pytest.mark.parametrize("shape", [(64, 10, 2, 2, 16), (16, 40, 3, 2, 16), (3, 100, 2, 2, 8)])
def test_heads_are_the_same_bits_whether_or_not_the_norm_is_wanted(shape):
    """z off is the plain backbone only if so: plain callers drop the norm, and the compiler with it."""
    b, t, g, _, e = shape
    q, (k, v) = jax.random.normal(jax.random.key(0), shape), jax.random.normal(jax.random.key(1), (2, b, g, t, e))
    both = jax.jit(lambda: attention.causal_attend(q, k, v, window=None))()
    np.testing.assert_array_equal(jax.jit(lambda: attention.causal_attend(q, k, v, window=None)[0])(), both[0])
