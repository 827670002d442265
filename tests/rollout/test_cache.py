"""The caches against a brute-force softmax over what was written."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.model.attention import OFF, Pseudo
from iiblpo_jax.rollout import cache as caches
from iiblpo_jax.rollout.cache import attend, copy_slots, empty_cache, fill_prompts, write

B, CAPACITY, R = 3, 23, 2
POSITION_B = jnp.array([22, 4, 9])


@pytest.fixture
def segments(monkeypatch):
    """Segments of 4, 4, 8 and 7 positions."""
    monkeypatch.setattr(caches, "SEGMENT", 4)


def filled(config, dtype="float32", *, unrolled=True):
    """A cache in which every position up to POSITION_B was written, with what was written: k and v [L,B,G,C,E]."""
    cache = empty_cache(config, B, CAPACITY, dtype, unrolled=unrolled, kv_copies=1)
    shape = (2, config.n_layers, B, config.n_kv_heads, CAPACITY, config.head_dim)
    k, v = jax.random.normal(jax.random.key(1), shape).astype(dtype)

    def step(c, cache):
        position_B = jnp.minimum(c, POSITION_B)
        for layer in range(config.n_layers):
            cache = write(cache, layer, position_B, *(x[layer, jnp.arange(B), :, position_B] for x in (k, v)))
        return cache

    cache = jax.jit(lambda cache: jax.lax.fori_loop(0, CAPACITY, step, cache))(cache)
    return cache, np.asarray(k, np.float64), np.asarray(v, np.float64)


def brute_force(q_BGRE, k_BGCE, v_BGCE, pseudo, window):
    out = np.zeros(q_BGRE.shape)
    for b, g, r in np.ndindex(*q_BGRE.shape[:3]):
        end = int(POSITION_B[b]) + 1
        first = 0 if window is None else max(0, end - window)
        keys, values = list(k_BGCE[b, g, first:end]), list(v_BGCE[b, g, first:end])
        bias = [0.0] * len(keys)
        if pseudo is not None:
            keys, values = [*keys, pseudo[0][b, g]], [*values, pseudo[1][b, g]]
            bias.append(float(pseudo[2][b]))
        weights = np.exp(np.array(keys) @ q_BGRE[b, g, r] / np.sqrt(q_BGRE.shape[-1]) + bias)
        out[b, g, r] = weights @ np.array(values) / weights.sum()
    return out


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("with_pseudo", [False, True])
def test_attention_over_segments_equals_brute_force(segments, tiny_config, window, with_pseudo):
    cache, k, v = filled(tiny_config)
    assert [width for _, width in cache.spans] == [4, 4, 8, 7]
    g, e = tiny_config.n_kv_heads, tiny_config.head_dim
    q_BGRE = jax.random.normal(jax.random.key(2), (B, g, R, e))
    pseudo = None
    if with_pseudo:
        pseudo = (*jax.random.normal(jax.random.key(3), (2, B, g, e)), jnp.array([-0.5, OFF, 0.0]))
    for layer in range(tiny_config.n_layers):
        heads, norm = attend(q_BGRE, cache, layer, POSITION_B, POSITION_B.max(), window)
        if with_pseudo:
            heads = Pseudo(k_GE=pseudo[0], v_GE=pseudo[1], bias=pseudo[2]).merge(q_BGRE, heads, norm)
        expected = brute_force(np.asarray(q_BGRE, np.float64), k[layer], v[layer], pseudo, window)
        np.testing.assert_allclose(heads, expected, atol=2e-6)


def test_segments_behind_the_longest_slot_change_no_bit(segments, tiny_config):
    cache, _, _ = filled(tiny_config)
    q_BGRE = jax.random.normal(jax.random.key(2), (B, tiny_config.n_kv_heads, R, tiny_config.head_dim))
    short_B = jnp.array([3, 2, 5])
    everything, needed = (attend(q_BGRE, cache, 0, short_B, longest, None)[0] for longest in (CAPACITY - 1, 5))
    np.testing.assert_array_equal(everything, needed)
    spoiled = cache.replace(k=[*cache.k[:2], *jax.tree.map(lambda x: x * jnp.nan, cache.k[2:])])
    np.testing.assert_array_equal(needed, attend(q_BGRE, spoiled, 0, short_B, 5, None)[0])


def test_stacked_and_bfloat16_caches_hold_the_same(segments, tiny_config):
    q_BGRE = jax.random.normal(jax.random.key(2), (B, tiny_config.n_kv_heads, R, tiny_config.head_dim))

    def read(cache, layer):
        return attend(q_BGRE, cache, layer, POSITION_B, CAPACITY - 1, None)[0]

    for dtype, tolerance in (("float32", 1e-6), ("bfloat16", 2e-2)):
        listed, k, v = filled(tiny_config, dtype)
        stacked, _, _ = filled(tiny_config, dtype, unrolled=False)
        for layer in range(tiny_config.n_layers):
            np.testing.assert_allclose(read(listed, layer), read(stacked, layer), atol=1e-6)
            expected = brute_force(np.asarray(q_BGRE, np.float64), k[layer], v[layer], None, None)
            np.testing.assert_allclose(read(listed, layer), expected, atol=tolerance)


@pytest.mark.parametrize("unrolled", [True, False])
def test_prompts_and_slots_are_copied_where_they_should_be(segments, tiny_config, unrolled):
    config = dataclasses.replace(tiny_config, n_layers=2)
    cache, k, v = filled(config, unrolled=unrolled)
    s, p = 6, 2  # a prompt ends inside the second segment
    k_LPGES = jax.random.normal(jax.random.key(5), (2, p, config.n_kv_heads, config.head_dim, s))
    v_LPGSE = jax.random.normal(jax.random.key(6), (2, p, config.n_kv_heads, s, config.head_dim))
    after = fill_prompts(cache, jnp.array([False, True, False]), jnp.array([0, 1, 0]), (k_LPGES, v_LPGSE))
    after = copy_slots(after, jnp.array([False, False, True]), jnp.array([0, 1, 1]))
    for layer in range(2):
        both = [after.read(layer, i) for i in range(len(after.spans))]
        k_BGCE = np.concatenate([np.swapaxes(x, 2, 3) for x, _ in both], 2)
        v_BGCE = np.concatenate([x for _, x in both], 2)
        for found, whole, prompt in (
            (k_BGCE, k[layer], np.swapaxes(k_LPGES[layer, 1], 1, 2)),
            (v_BGCE, v[layer], v_LPGSE[layer, 1]),
        ):
            np.testing.assert_array_equal(found[0], whole[0].astype(np.float32))  # nobody touched slot 0
            for slot in (1, 2):
                np.testing.assert_array_equal(found[slot, :, :s], prompt)
                np.testing.assert_array_equal(found[slot, :, s:], found[1, :, s:])
