"""Clip-Cov, KL-Cov and 80/20 against loops in numpy; which tokens are chosen depends on nothing but the tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.objectives import make_objective
from iiblpo_jax.objectives.covariance import at_least_one, covariance, largest, token_uniforms


def loss_of(objective, batch):
    return objective.loss(batch, objective.weights(batch))


@pytest.fixture
def batch(make_batch):
    rng = np.random.default_rng(5)
    lengths = (9, 4, 7, 8)
    made = make_batch(5, lengths=lengths, importance_RT=rng.uniform(0.5, 2, (4, 9)))
    return made.replace(key=jax.random.key(0))


def covariances(batch):
    mask = np.asarray(batch.rows.mask_RT) > 0
    a, logp = (np.asarray(x, np.float64) for x in (batch.rows.advantage_RT, batch.logp_RT))
    return np.where(mask, (a - a[mask].mean()) * (logp - logp[mask].mean()), -np.inf)


def test_covariance_and_counts_by_hand(batch):
    mask = np.asarray(batch.rows.mask_RT) > 0
    found = np.asarray(covariance(batch, batch.rows.advantage_RT))
    np.testing.assert_allclose(found[mask], covariances(batch)[mask], rtol=1e-4, atol=1e-6)
    assert [int(at_least_one(share, mask)) for share in (0.0, 0.25, 0.3, 1.0)] == [1, 7, 8, 28]


def test_largest_takes_exactly_so_many():
    x = jnp.array([[1.0, 3.0, 3.0], [3.0, jnp.nan, 0.0]])
    among = jnp.array([[1, 1, 1], [1, 0, 1]]) > 0
    np.testing.assert_array_equal(largest(x, among, 2), [[0, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(largest(x, among, 99), among)


@pytest.mark.parametrize("share", [1e-9, 0.25])
def test_kl_cov_charges_the_largest_covariances(batch, share):
    objective = make_objective("kl_cov", max_tokens=10, overrides={"share": share, "kl_coef": 0.7})
    cov, count = covariances(batch), max(1, int(share * 28))
    chosen = np.zeros(cov.shape, bool).ravel()
    chosen[np.argsort(-cov.ravel())[:count]] = True
    moved = np.asarray(batch.logp_RT - batch.old_logp_RT, np.float64)
    loss = -np.asarray(batch.rows.advantage_RT) * np.exp(moved) + 0.7 * np.abs(moved) * chosen.reshape(cov.shape)
    expected = (np.asarray(batch.importance_RT) * loss)[np.isfinite(cov)].mean()
    assert loss_of(objective, batch)[0] == pytest.approx(expected, rel=1e-5)


def test_kl_cov_without_a_price_is_reinforce_with_the_ratio(batch):
    free = make_objective("kl_cov", max_tokens=10, overrides={"kl_coef": 0.0})
    clipped = make_objective("grpo", max_tokens=10, overrides={"clip_low": 0.999, "clip_high": 1e6})
    bounded = batch.replace(logp_RT=jnp.minimum(batch.logp_RT, batch.old_logp_RT + 1))  # r < 3: no dual clip
    assert loss_of(free, bounded)[0] == pytest.approx(float(loss_of(clipped, bounded)[0]), rel=1e-5)


def test_clip_cov_drops_a_share_of_open_tokens_and_keeps_the_denominator(batch):
    options = {"share": 0.1, "cov_low": 0.2, "cov_high": 3.0}
    objective, grpo = (make_objective(n, max_tokens=10, overrides=o) for n, o in (("clip_cov", options), ("grpo", {})))
    loss, token = loss_of(objective, batch)
    _, plain = loss_of(grpo, batch)
    cov = covariances(batch)
    may = (cov > 0.2) & (cov < 3.0) & (np.asarray(plain.clip_low_RT + plain.clip_high_RT) == 0)
    dropped = (np.asarray(token.loss_RT) == 0) & (np.asarray(plain.loss_RT) != 0)
    assert may.sum() > 2 and dropped.sum() == 2 and (dropped <= may).all()
    kept = np.isfinite(cov) & ~dropped
    assert loss == pytest.approx(np.asarray(plain.loss_RT)[kept].sum() / 28, rel=1e-5)
    np.testing.assert_array_equal(token.clip_high_RT, np.where(dropped, 1, plain.clip_high_RT))
    other = loss_of(objective, batch.replace(key=jax.random.key(7)))[1]
    assert (np.asarray(other.loss_RT == 0) != np.asarray(token.loss_RT == 0)).any()


@pytest.mark.parametrize("name", ["clip_cov", "kl_cov", "forking_tokens"])
def test_padding_and_row_order_choose_the_same_tokens(batch, name):
    options = {"clip_cov": {"share": 0.1, "cov_low": 0.2}, "kl_cov": {"share": 0.25}}.get(name, {})
    objective = make_objective(name, max_tokens=10, overrides=options)
    order = jnp.array([2, 0, 3, 1])

    def wider(x):
        return jnp.pad(x, [(0, 0), (0, 3)]) if x.ndim == 2 and x.shape[1] == batch.rows.t else x

    straight = loss_of(objective, batch)[0]
    shuffled = jax.tree.map(lambda x: x[order] if x.ndim and x.shape[0] == 4 else x, batch.replace(key=None))
    assert loss_of(objective, shuffled.replace(key=batch.key))[0] == pytest.approx(float(straight), rel=1e-6)
    padded = jax.tree.map(wider, batch.replace(key=None)).replace(key=batch.key)
    assert loss_of(objective, padded)[0] == pytest.approx(float(straight), rel=1e-6)


def test_a_tokens_uniform_number_is_its_own(batch):
    found = token_uniforms(batch)
    assert ((found >= 0) & (found < 1)).all() and len(np.unique(np.asarray(found))) == found.size


def test_forking_tokens_are_the_highest_entropies(batch):
    """28 tokens, ceil(.2 * 28) = 6 of them; the denominator is 6; otherwise DAPO."""
    objective, dapo = (make_objective(name, max_tokens=10) for name in ("forking_tokens", "dapo"))
    mask = np.asarray(batch.rows.mask_RT) > 0
    entropy = np.where(mask, np.asarray(batch.entropy_RT), -np.inf)
    chosen = entropy >= np.sort(entropy.ravel())[-6]
    np.testing.assert_allclose(objective.weights(batch), chosen / 6, rtol=1e-6)
    losses = np.asarray(loss_of(dapo, batch)[1].loss_RT)
    assert loss_of(objective, batch)[0] == pytest.approx(losses[chosen].mean(), rel=1e-5)
    every = make_objective("forking_tokens", max_tokens=10, overrides={"fraction": 1.0})
    assert loss_of(every, batch)[0] == pytest.approx(float(loss_of(dapo, batch)[0]), rel=1e-6)
