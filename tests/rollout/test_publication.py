"""Publications against the weights they were made from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from iiblpo_jax.model.decoder import Decoder, params_of
from iiblpo_jax.model.layer import multiply
from iiblpo_jax.model.quantised import quantise
from iiblpo_jax.rollout.publication import PublicationSpec, kv_copies, kv_heads_held, logits, look_up, publish


@pytest.fixture(scope="module")
def biased(tiny_config):
    """A model with everything that tiny_config lacks, and its weights; biases are not zero."""
    config = dataclasses.replace(tiny_config, qkv_bias=True, tied_embeddings=False)
    params = params_of(Decoder(config, rngs=nnx.Rngs(4)))
    bias = jax.random.normal(jax.random.key(0), params["layers"]["qkv_bias"].shape)
    qk_norm = 1 + jax.random.normal(jax.random.key(1), params["layers"]["qk_norm"].shape)
    return config, {**params, "layers": {**params["layers"], "qkv_bias": bias, "qk_norm": qk_norm}}


def apart(fused, heads):
    """[G,R+2, ...] as q [H, ...], k [G, ...] and v [G, ...]."""
    return fused[:, :-2].reshape(heads, *fused.shape[2:]), fused[:, -2], fused[:, -1]


@pytest.mark.parametrize(("unroll", "copies"), [(True, 1), (False, 1), (True, 2)])
def test_fused_matrices_hold_their_parts_in_order(biased, unroll, copies):
    config, params = biased
    published = publish(params, spec=PublicationSpec(model=config, unroll=unroll, kv_copies=copies))
    heads = config.n_kv_heads * copies
    x_ND = jax.random.normal(jax.random.key(8), (5, config.d_model))
    for i in range(config.n_layers):

        def of_layer(tree, i=i):
            return jax.tree.map(lambda x: np.asarray(x[i]), tree)

        w = of_layer(params["layers"])
        layer = published.layers[i] if unroll else of_layer(published.layers)
        each = config.n_heads // heads  # queries of a kv head
        q, k, v = (np.einsum("nd,hed->nhe", x_ND, part) for part in apart(w["qkv"], config.n_heads))
        q_bias, k_bias, v_bias = apart(w["qkv_bias"], config.n_heads)
        qkv = np.asarray(multiply(x_ND, layer.qkv))
        for g in range(heads):
            np.testing.assert_allclose(qkv[:, g, :-2], q[:, g * each : (g + 1) * each], atol=1e-5)
            kv = g // copies
            np.testing.assert_allclose(qkv[:, g, -2], k[:, kv], atol=1e-5)
            np.testing.assert_allclose(qkv[:, g, -1], v[:, kv], atol=1e-5)
            biases = [*q_bias[g * each : (g + 1) * each], k_bias[kv], v_bias[kv]]
            np.testing.assert_array_equal(layer.qkv_bias[g], np.stack(biases))
        gate_up = np.stack([x_ND @ part.T for part in w["gate_up"]], 1)
        np.testing.assert_allclose(multiply(x_ND, layer.gate_up), gate_up, atol=1e-5)
        heads_NHE = jax.random.normal(jax.random.key(9), (5, config.n_heads, config.head_dim))
        expected_ND = np.einsum("nhe,dhe->nd", heads_NHE, w["o"].reshape(config.d_model, *heads_NHE.shape[1:]))
        heads_NGRE = heads_NHE.reshape(5, heads, each, config.head_dim)
        np.testing.assert_allclose(multiply(heads_NGRE, layer.o), expected_ND, atol=1e-5)
        np.testing.assert_array_equal(layer.qk_norm, w["qk_norm"])
    np.testing.assert_allclose(logits(published, x_ND), x_ND @ params["head"].T, atol=1e-5)


@pytest.mark.parametrize(
    ("heads", "kv", "parts", "copies", "held"),
    [
        (32, 8, 1, 1, 8),
        (32, 8, 4, 1, 2),
        (32, 8, 16, 2, 1),
        (32, 8, 32, 4, 1),
        (12, 6, 4, 2, 3),
        (8, 1, 8, 8, 1),
        (28, 4, 8, 1, 4),
        (32, 8, 64, 1, 8),
        (9, 3, 2, 1, 3),
    ],
)
def test_kv_heads_are_copied_where_every_part_then_has_whole_heads(tiny_config, heads, kv, parts, copies, held):
    config = dataclasses.replace(tiny_config, n_heads=heads, n_kv_heads=kv)
    assert (kv_copies(config, parts), kv_heads_held(config, parts)) == (copies, held)
    if held < kv or parts == 1:  # part p has query heads p * H / parts and on, and the kv heads that they attend to
        each = heads // (kv * copies)
        for head in range(heads):
            assert head // each // copies == head // (heads // kv)
            assert head // each // held == head // (heads // parts)


def test_int8_is_off_by_half_a_step_of_its_channel_at_most():
    weight_OI = jax.random.normal(jax.random.key(0), (6, 40)) * jnp.array([1e-3, 1.0, 50.0, 1.0, 1.0, 0.0])[:, None]
    matrix = quantise(weight_OI.at[3, 0].set(100.0))  # an outlier coarsens its own channel alone
    weight_OI = np.asarray(weight_OI.at[3, 0].set(100.0), np.float64)
    scale_O = np.abs(weight_OI).max(1) / 127
    error_OI = np.abs(np.asarray(matrix.weight, np.float64) * scale_O[:, None] - weight_OI)
    assert matrix.weight.dtype == jnp.int8 and int(jnp.abs(matrix.weight).max()) == 127
    np.testing.assert_allclose(matrix.scale, scale_O, rtol=1e-6)
    assert (error_OI <= 0.5 * scale_O[:, None] * (1 + 1e-5)).all()
    assert error_OI[2].max() > 0.1 * scale_O[2] and not np.asarray(matrix.weight)[5].any()


def test_int8_products_and_embeddings_are_those_of_the_dequantised_matrices(biased):
    config, params = biased
    published = publish(params, spec=PublicationSpec(model=config, weights="int8"))

    def dense(m):
        return np.asarray(m.weight, np.float32) * np.asarray(m.scale)[..., None]

    x_ND = jax.random.normal(jax.random.key(8), (5, config.d_model))
    layer = published.layers[0]
    np.testing.assert_allclose(
        multiply(x_ND, layer.gate_up), np.einsum("nd,afd->naf", x_ND, dense(layer.gate_up)), atol=1e-5
    )
    np.testing.assert_allclose(logits(published, x_ND), x_ND @ dense(published.head).T, atol=1e-5)
    tokens_N = jnp.array([3, 0, 22])
    np.testing.assert_allclose(look_up(published, tokens_N), dense(published.embed)[tokens_N], atol=1e-6)
    np.testing.assert_array_equal(layer.attn_norm, params["layers"]["attn_norm"][0])


def test_bfloat16_keeps_norms_and_sums_in_float32(biased):
    config, params = biased
    published = publish(params, spec=PublicationSpec(model=config, dtype="bfloat16"))
    layer = published.layers[0]
    assert layer.qkv.weight.dtype == layer.qkv_bias.dtype == published.embed.weight.dtype == jnp.bfloat16
    assert layer.attn_norm.dtype == layer.qk_norm.dtype == published.final_norm_D.dtype == jnp.float32
    assert look_up(published, jnp.array([1])).dtype == jnp.bfloat16
    ones_ND = jnp.ones((1, config.d_model), jnp.bfloat16)
    assert multiply(ones_ND, layer.down.replace(weight=jnp.full((1, config.d_model), 1.01, jnp.bfloat16))).dtype == (
        jnp.float32
    )
