"""Pseudo self-attention against its formula written out for one query."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from iiblpo_jax.model.attention import OFF, Pseudo, attend
from iiblpo_jax.model.decoder import bind, hidden_states, params_of
from iiblpo_jax.model.steering.psa import PSA, Latent, bind_psa, latent_inputs, layer_weights, steer_rows


def test_gamma_halves_and_starts_at_the_refed_token():
    latent = latent_inputs(
        jnp.ones((2, 1, 3)), jnp.array([[2], [0]]), jnp.array([3, 3]), 10, half_life=2.0, strength=0.5
    )
    # Prompt of 3: response token 1 (the one before t* = 2) stands at column 4, and is the first with z on.
    assert latent.segment_BT.tolist() == [[-1] * 4 + [0] * 6, [-1] * 10]
    np.testing.assert_allclose(latent.gamma_BT[0, 4:8], [0.5, 0.5 * 2**-0.5, 0.25, 0.25 * 2**-0.5], rtol=1e-6)


def test_infinite_half_life_switches_decay_off():
    latent = latent_inputs(
        jnp.ones((1, 1, 3)), jnp.array([[2]]), jnp.array([3]), 10, half_life=float("inf"), strength=1.0
    )
    np.testing.assert_array_equal(latent.gamma_BT[0, 4:], 1.0)


def test_a_later_level_overrides_an_earlier_one():
    at = jnp.array([[2, 4], [4, 2]])
    latent = latent_inputs(jnp.ones((2, 2, 3)), at, jnp.array([1, 1]), 7, half_life=4.0, strength=1.0)
    assert latent.segment_BT.tolist() == [[-1, -1, 0, 0, 1, 1, 1], [-1, -1, 1, 1, 1, 1, 1]]


def test_pseudo_position_by_hand():
    """Weights exp(q.k/sqrt(E)) for two keys and gamma * exp(q.k_z/sqrt(E)) for the pseudo position, normalised."""
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=4), rng.normal(size=(2, 4)), rng.normal(size=(2, 4))
    kz, vz, gamma = rng.normal(size=4), rng.normal(size=4), 0.3
    weights = np.array([np.exp(q @ k[0] / 2), np.exp(q @ k[1] / 2), gamma * np.exp(q @ kz / 2)])
    expected = (weights[0] * v[0] + weights[1] * v[1] + weights[2] * vz) / weights.sum()
    pseudo = Pseudo(
        k_GE=jnp.array(kz).reshape(1, 1, 1, 4),
        v_GE=jnp.array(vz).reshape(1, 1, 1, 4),
        bias=jnp.log(jnp.array([[gamma]])),
    )
    args = jnp.array(q).reshape(1, 1, 1, 1, 4), jnp.array(k).reshape(1, 1, 2, 4), jnp.array(v).reshape(1, 1, 2, 4)
    heads, norm = attend(*args, jnp.ones((1, 1, 2), bool))
    np.testing.assert_allclose(norm.ravel(), np.log(weights[:2].sum()), rtol=1e-5)
    np.testing.assert_allclose(pseudo.merge(args[0], heads, norm).ravel(), expected, rtol=1e-5)
    np.testing.assert_array_equal(pseudo.replace(bias=jnp.full((1, 1), OFF)).merge(args[0], heads, norm), heads)


def test_gain_and_bias_of_a_layer(tiny_config, tiny_psa_params):
    latent = Latent(
        z_BJZ=jnp.arange(8.0).reshape(1, 2, 4),
        segment_BT=jnp.array([[-1, 0, 1]]),
        gamma_BT=jnp.array([[1.0, 0.5, 0.25]]),
    )
    steering = steer_rows(bind_psa(tiny_psa_params, tiny_config), 2, latent)
    gain, pseudo = steering.at(jax.tree.map(lambda w: w[1], steering.layers))
    w = np.asarray(tiny_psa_params["gain"][1])
    np.testing.assert_allclose(gain[0, 0], 0.0)
    np.testing.assert_allclose(gain[0, 1], 0.5 * np.arange(4.0) @ w, rtol=1e-5)
    np.testing.assert_allclose(gain[0, 2], 0.25 * np.arange(4.0, 8.0) @ w, rtol=1e-5)
    np.testing.assert_allclose(pseudo.bias[0], [OFF, np.log(0.5), np.log(0.25)], rtol=1e-6)
    for found, name in ((pseudo.k_GE, "key"), (pseudo.v_GE, "value")):
        projection = np.asarray(tiny_psa_params[name][1])
        np.testing.assert_allclose(found[0, 1], np.einsum("z,zge->ge", np.arange(4.0), projection), atol=1e-5)
        np.testing.assert_allclose(found[0, 2], np.einsum("z,zge->ge", np.arange(4.0, 8.0), projection), atol=1e-5)


def test_z_off_leaves_the_backbone_alone_and_z_on_does_not_reach_back(tiny_config, tiny_params, tiny_psa_params):
    model, psa = bind(tiny_config, tiny_params), bind_psa(tiny_psa_params, tiny_config)
    rows = jax.random.randint(jax.random.key(0), (2, 12), 0, 23)
    latent = latent_inputs(
        jnp.ones((2, 1, 4)), jnp.array([[3], [0]]), jnp.array([4, 4]), 12, half_life=8.0, strength=1.0
    )
    plain, steered = hidden_states(model, rows), hidden_states(model, rows, inject=steer_rows(psa, 2, latent))
    np.testing.assert_array_equal(steered[1], plain[1])
    np.testing.assert_array_equal(steered[0, :6], plain[0, :6])
    assert float(jnp.abs(steered[0, 6:] - plain[0, 6:]).min(0).max()) > 1e-3


def test_only_the_last_layers_are_injected(tiny_config):
    weights = layer_weights(PSA(tiny_config, 4, 1, rngs=nnx.Rngs(0)), 2)
    assert weights["on"].tolist() == [False, True]
    assert not weights["key"][0].any() and weights["key"][1].any()
    assert set(params_of(PSA(tiny_config, 4, 1, rngs=nnx.Rngs(0)))) == {"gain", "key", "value"}
