"""The fit: it learns what can be learnt, piece by piece as at once, and leaves a frozen backbone alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.model.decoder import bind, hidden_states
from iiblpo_jax.model.reward import make_head, pair_terms
from iiblpo_jax.reward_models import training
from iiblpo_jax.reward_models.pairs import PairRows, split
from iiblpo_jax.reward_models.training import Fit, batch_of, make_step, measure, padded_last_states, rows_of, states_of

N, C, Z = 96, 7, 4


@pytest.fixture(scope="module")
def pairs():
    """The chosen response ends with token 3, the rejected one with token 6; the rest is noise."""
    rng = np.random.default_rng(0)
    tokens_N2C, length_N2 = rng.integers(9, 23, (N, 2, C)).astype(np.int32), rng.integers(4, C + 1, (N, 2))
    for n in range(N):
        for side in range(2):
            tokens_N2C[n, side, length_N2[n, side] - 1] = 3 + 3 * side
            tokens_N2C[n, side, length_N2[n, side] :] = 0
    return PairRows(tokens_N2C, length_N2.astype(np.int32), np.arange(N))


def fitted(fit, params, pairs, batch=24):
    state = fit.begin(params)
    step = make_step(fit, state)
    for n in range(fit.steps):
        index_B = jnp.asarray(batch_of(n, pairs=len(pairs[0]), batch=batch, seed=0))
        state, terms = step(state, pairs, index_B, jax.random.key(n))
    return state["params"], terms


def test_a_frozen_backbone_learns_a_separable_toy_and_is_not_touched(tiny_config, tiny_params, pairs):
    before = jax.tree.map(np.array, tiny_params)
    h_N2D = states_of(tiny_config, tiny_params, *rows_of(pairs)).reshape(N, 2, -1)
    train, held_out = split(pairs.prompt_N)
    head = make_head(jax.random.key(1), width=h_N2D.shape[2], latent=Z)
    fit = Fit(model=None, beta=0.01, lr=0.03, steps=60)
    params, _ = fitted(fit, {"head": head}, (h_N2D[train],))
    found, fresh = (
        measure(head, h_N2D[held_out]) for head in (params["head"], make_head(jax.random.key(1), width=16, latent=Z))
    )
    assert found["accuracy"] > 0.9 > fresh["accuracy"] and found["loss"] < 0.3 and 1 <= found["active"] <= Z
    assert set(params) == {"head"}  # so no gradient of it exists
    jax.tree.map(np.testing.assert_array_equal, before, tiny_params)


def test_the_hidden_state_is_that_of_the_last_token(tiny_config, tiny_params, pairs):
    """Whatever stands behind it."""
    read = jax.jit(lambda *rows: padded_last_states(tiny_config, tiny_params, *rows))
    tokens_NC, length_N = (x[:4] for x in rows_of(pairs))
    at = hidden_states(bind(tiny_config, tiny_params), jnp.asarray(tokens_NC))
    other_NC = np.where(np.arange(C) < length_N[:, None], tokens_NC, 22)
    np.testing.assert_array_equal(read(tokens_NC, length_N), read(other_NC, length_N))
    np.testing.assert_allclose(read(tokens_NC, length_N), at[np.arange(4), length_N - 1], rtol=2e-4, atol=2e-5)


def test_pieces_add_up_to_the_batch_and_to_the_gradient_of_the_formula(tiny_config, tiny_params, pairs, monkeypatch):
    """A trained backbone; the loss of a batch written down once more, with the noise that every pair has."""
    head = make_head(jax.random.key(1), width=16, latent=Z)
    params = {"head": head, "backbone": tiny_params}
    data, index_B, key = (pairs.tokens_N2C, pairs.length_N2), jnp.array([5, 0, 17, 3]), jax.random.key(7)
    fit = Fit(model=tiny_config, beta=0.3, lr=1e-2, steps=1)

    def loss(params):
        rows = jnp.asarray(pairs.tokens_N2C[index_B].reshape(8, C)), jnp.asarray(pairs.length_N2[index_B].ravel())
        h_B2D = padded_last_states(tiny_config, params["backbone"], *rows).reshape(4, 2, -1)
        noise = jnp.stack([jax.random.normal(jax.random.fold_in(key, n), (2, Z)) for n in index_B])
        loss_B, kl_B = pair_terms(params["head"], h_B2D, noise)
        return loss_B.mean() + 0.3 * kl_B.mean()

    value, wanted = jax.jit(jax.value_and_grad(loss))(params)
    assert training._piece(fit, 4, C) == 4
    monkeypatch.setattr(training, "TOKENS_PER_PIECE", 2 * 2 * C)
    assert training._piece(fit, 4, C) == 2
    found, terms = jax.jit(lambda *x: training._gradient(fit, *x))(params, tuple(map(jnp.asarray, data)), index_B, key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), found, wanted)
    assert abs(terms["loss"] + 0.3 * terms["kl"] - value) < 1e-4
    assert np.abs(wanted["backbone"]["embed"]).max() > 1e-4  # a trained backbone has a gradient


def test_every_epoch_goes_through_all_pairs_in_another_order():
    epochs = [np.concatenate([batch_of(3 * e + n, pairs=12, batch=4, seed=5) for n in range(3)]) for e in range(2)]
    assert all(sorted(order) == list(range(12)) for order in epochs) and (epochs[0] != epochs[1]).any()
    assert training.steps_of(pairs=14, batch=4, epochs=2) == 6 and training.steps_of(pairs=3, batch=4, epochs=2) == 2
    assert len(batch_of(1, pairs=3, batch=4, seed=0)) == 3


def test_what_is_measured_by_hand():
    """z = h, r = z: margins 2, -1 and 0; a third of the pairs is right, one undecided."""
    head = dataclasses.replace(
        make_head(jax.random.key(0), width=1, latent=1), encode_YD=jnp.array([[1.0], [0.0]]), value_Z=jnp.ones(1)
    )
    found = measure(head, jnp.array([[3.0, 1.0], [0.0, 1.0], [1.0, 1.0]])[..., None])
    assert found["accuracy"] == 0.5 and found["active"] == 1
    np.testing.assert_allclose(found["margin"], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(found["loss"], np.mean(np.log1p(np.exp([-2.0, 1.0, 0.0]))), rtol=1e-6)
    np.testing.assert_allclose(found["kl"], (9 + 1 + 0 + 1 + 1 + 1) / 6 / 2, rtol=1e-6)
