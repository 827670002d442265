"""CISPO, SAPO, DPPO and BAPO against loops over tokens in numpy, and their reductions to one another."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.objectives import make_objective


def value_and_grad(objective, batch):
    def f(logp):
        now = batch.replace(logp_RT=logp)
        return objective.loss(now, objective.weights(now))[0]

    return jax.value_and_grad(f)(batch.logp_RT)


def same(got, expected, rtol=1e-5):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-7)


def on_policy(batch):
    """The same with pi_old = mu = pi."""
    rows = batch.rows.replace(raw_logp_RT=batch.logp_RT)
    return batch.replace(old_logp_RT=batch.logp_RT, rows=rows)


def numbers(batch):
    """Counted tokens as tuples (log pi, log pi_old, log mu, A, weight)."""
    rows = batch.rows
    arrays = (batch.logp_RT, batch.old_logp_RT, rows.raw_logp_RT, rows.advantage_RT, batch.importance_RT)
    mask = np.asarray(rows.mask_RT) > 0
    return list(zip(*(np.asarray(x, np.float64)[mask] for x in arrays), strict=True))


@pytest.fixture
def batch(make_batch):
    rng = np.random.default_rng(3)
    shape = (4, 5)
    return make_batch(1, raw_logp_RT=rng.uniform(-3, 0, shape), importance_RT=rng.uniform(0.5, 2, shape))


def test_cispo_by_hand(batch):
    """Value: -w clip(r) A log pi; gradient: -w clip(r) A, none of it clipped away."""
    objective = make_objective("cispo", max_tokens=10)
    tokens = numbers(batch)
    weight = [w * np.clip(np.exp(now - old), 0.0, 1.2) * a for now, old, _, a, w in tokens]
    value, gradient = value_and_grad(objective, batch)
    assert value == pytest.approx(-np.mean([x * t[0] for x, t in zip(weight, tokens, strict=True)]), rel=1e-5)
    mask = np.asarray(batch.rows.mask_RT) > 0
    np.testing.assert_allclose(np.asarray(gradient)[mask], -np.array(weight) / len(tokens), rtol=1e-5)
    assert max(np.exp(now - old) for now, old, *_ in tokens) > 1.2


def test_cispo_on_policy_with_wide_bounds_is_reinforce(batch):
    objective = make_objective("cispo", max_tokens=10, overrides={"clip_high": 9.0})
    _, gradient = value_and_grad(objective, on_policy(batch))
    rows = batch.rows
    expected = -batch.importance_RT * rows.advantage_RT * rows.mask_RT / rows.mask_RT.sum()
    np.testing.assert_allclose(gradient, expected, rtol=1e-6)


def test_sapo_by_hand(batch):
    def gate(r, a):
        tau = 1.0 if a > 0 else 1.05
        return 4 / tau / (1 + np.exp(-tau * (r - 1)))

    objective = make_objective("sapo", max_tokens=10, overrides={"aggregate": "token-mean"})
    expected = -np.mean([w * a * gate(np.exp(now - old), a) for now, old, _, a, w in numbers(batch)])
    assert value_and_grad(objective, batch)[0] == pytest.approx(expected, rel=1e-5)
    assert make_objective("sapo", max_tokens=10).aggregate == "seq-mean-token-mean"


def test_sapo_begins_as_grpo_and_fades(batch):
    """f'(1) = 1; at r = 3 the gradient with respect to r is 4 p (1 - p) of it, p = sigmoid(tau 2)."""
    aggregate = {"aggregate": "token-mean"}
    sapo, grpo = (make_objective(name, max_tokens=10, overrides=aggregate) for name in ("sapo", "grpo"))
    here = on_policy(batch)
    same(value_and_grad(sapo, here)[1:], value_and_grad(grpo, here)[1:])
    far = here.replace(old_logp_RT=here.logp_RT - jnp.log(3.0))
    p = 1 / (1 + np.exp(-2.0 * np.where(batch.rows.advantage_RT > 0, 1.0, 1.05)))
    expected = value_and_grad(grpo, here)[1] * 3 * 4 * p * (1 - p)  # d loss / d log pi = r d loss / d r
    np.testing.assert_allclose(value_and_grad(sapo, far)[1], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("divergence", ["tv", "kl"])
@pytest.mark.parametrize("anchor", ["rollout", "old"])
def test_dppo_by_hand(batch, divergence, anchor):
    """Distances of two-point distributions, a loop over tokens."""

    def distance(pi, mu):
        if divergence == "tv":
            return 0.5 * (abs(pi - mu) + abs((1 - pi) - (1 - mu)))
        return mu * np.log(mu / pi) + (1 - mu) * np.log((1 - mu) / (1 - pi))

    bound, losses, masked = {"tv": 0.15, "kl": 0.05}[divergence], [], 0
    for logp, old, mu, a, w in numbers(batch):
        anchored = mu if anchor == "rollout" else old
        ratio = np.exp(logp - anchored)
        far = distance(np.exp(logp), np.exp(anchored)) > bound
        cut = far and (ratio > 1 if a > 0 else ratio < 1)
        masked += cut
        weight = 0 if cut else min(ratio, 1.5)
        losses.append(-weight * a * logp * (w if anchor == "old" else 1))
    assert 0 < masked < len(losses)
    options = {"divergence": divergence, "anchor": anchor, "cap": 1.5, "aggregate": "token-mean"}
    objective = make_objective("dppo", max_tokens=10, overrides=options)
    assert value_and_grad(objective, batch)[0] == pytest.approx(np.mean(losses), rel=1e-4)
    _, token = objective.loss(batch, objective.weights(batch))
    counted = (token.clip_low_RT + token.clip_high_RT) * batch.rows.mask_RT
    assert counted.sum() == masked


@pytest.mark.parametrize("divergence", ["tv", "kl"])
def test_dppo_over_the_likeliest_tokens_by_hand(batch, divergence):
    """Three tokens of a vocabulary of six and the rest, of which the sampled one may be a part; a loop over tokens."""
    rng, shape = np.random.default_rng(4), (4, 5)
    mu, pi = (np.log(rng.dirichlet(np.ones(6), shape)) for _ in range(2))
    pi[:, :3] = np.log(0.9 * np.exp(mu[:, :3]) + 0.1 * np.exp(pi[:, :3]))  # the first tokens have hardly moved
    drawn = rng.integers(6, size=shape)[..., None]
    ids = np.argsort(-mu, axis=-1)[..., :3]

    def at(x, which):
        return jnp.asarray(np.take_along_axis(x, which, axis=-1), jnp.float32)

    rows = batch.rows.replace(raw_logp_RT=at(mu, drawn)[..., 0], extras={"top_logp": at(mu, ids)})
    batch = batch.replace(rows=rows, logp_RT=at(pi, drawn)[..., 0], top_logp_RTK=at(pi, ids))
    bound, losses, masked = {"tv": 0.15, "kl": 0.05}[divergence], [], 0
    advantage, counted = np.asarray(rows.advantage_R), np.asarray(rows.mask_RT) > 0
    for r, t in zip(*np.nonzero(counted), strict=True):
        p, q = ([*np.exp(x[r, t, ids[r, t]])] for x in (mu, pi))
        p, q = [*p, 1 - sum(p)], [*q, 1 - sum(q)]
        tv, kl = sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2, sum(p * np.log(np.divide(p, q)))
        token, a = drawn[r, t, 0], advantage[r]
        ratio = np.exp(pi[r, t, token] - mu[r, t, token])
        cut = {"tv": tv, "kl": kl}[divergence] > bound and (ratio > 1 if a > 0 else ratio < 1)
        masked += cut
        losses.append(0 if cut else -min(ratio, 20.0) * a * pi[r, t, token])
    assert 0 < masked < len(losses)
    options = {"divergence": divergence, "top_k": 3, "aggregate": "token-mean"}
    objective = make_objective("dppo", max_tokens=10, overrides=options)
    assert objective.record == 3
    assert value_and_grad(objective, batch)[0] == pytest.approx(np.mean(losses), rel=1e-4)
    _, token = objective.loss(batch, objective.weights(batch))
    assert ((token.clip_low_RT + token.clip_high_RT) * rows.mask_RT).sum() == masked


def test_dppo_with_one_likeliest_token_that_was_drawn_is_the_binary_one(batch):
    same = batch.rows.replace(extras={"top_logp": batch.rows.raw_logp_RT[..., None]})
    batch = batch.replace(rows=same, top_logp_RTK=batch.logp_RT[..., None])
    binary, top = (make_objective("dppo", max_tokens=10, overrides={"top_k": k}) for k in (0, 1))
    ours, theirs = (o.loss(batch, o.weights(batch)) for o in (top, binary))
    assert ours[0] == theirs[0] and ours[1].clip_high_RT.sum() > 0


def test_dppo_notes_what_it_compares_in_the_rollout_alone():
    assert make_objective("dppo", max_tokens=10).record == 0
    with pytest.raises(InputError, match=r"top_k = 3 compares with what the rollout noted; set anchor=rollout"):
        make_objective("dppo", max_tokens=10, overrides={"top_k": 3, "anchor": "old"})


def test_dppo_by_total_variation_is_the_mask_of_ppo_at_one_probability(make_batch):
    """With mu the same everywhere, |pi - mu| > delta says what r > 1 + delta / mu and r < 1 - delta / mu say."""
    mu, delta = 0.5, 0.1
    rng = np.random.default_rng(0)
    mus = np.full((4, 5), np.log(mu))
    batch = make_batch(2, old_logp_RT=mus, raw_logp_RT=mus, logp_RT=np.log(rng.uniform(0.2, 0.8, (4, 5))))
    dppo = make_objective("dppo", max_tokens=10, overrides={"delta_low": delta, "delta_high": delta})
    grpo = make_objective("grpo", max_tokens=10, overrides={"clip_low": delta / mu, "clip_high": delta / mu})
    tokens = [o.loss(batch, o.weights(batch))[1] for o in (dppo, grpo)]
    for field in ("clip_low_RT", "clip_high_RT"):
        ours, theirs = (getattr(token, field) * batch.rows.mask_RT for token in tokens)
        np.testing.assert_array_equal(ours, theirs)
        assert ours.sum() > 0


def bapo_bounds(batch, target):
    """The loop of the paper, in floats."""
    low, high = 0.6, 1.2
    while True:
        positive = sum(np.exp(mu) * min(np.exp(now - old), high) * a for now, old, mu, a, _ in numbers(batch) if a > 0)
        negative = sum(-np.exp(mu) * max(np.exp(now - old), low) * a for now, old, mu, a, _ in numbers(batch) if a < 0)
        if positive / (positive + negative) >= target or low + 0.02 > 0.9 + 1e-9:
            return low, high
        if high + 0.05 <= 3.0 + 1e-9:
            high += 0.05
        else:
            low += 0.02


@pytest.mark.parametrize("target", [0.0, 0.6, 0.7, 0.99])
def test_bapo_widens_as_the_loop_does(batch, target):
    batch = batch.replace(old_logp_RT=batch.logp_RT - 2 * (batch.logp_RT - batch.old_logp_RT))
    rows = batch.rows.replace(advantage_R=jnp.array([0.5, -1.2, 0.5, -1.0]))
    batch = batch.replace(rows=rows)
    objective = make_objective("bapo", max_tokens=10, overrides={"target": target})
    low, high = objective.policy_loss.keywords["bounds"](batch, rows.advantage_RT)
    expected = bapo_bounds(batch, target)
    assert (float(low), float(high)) == pytest.approx(expected, rel=1e-6)
    clipped = make_objective("grpo", max_tokens=10, overrides={"clip_low": 1 - expected[0], "clip_high": high - 1})
    plain = dataclasses.replace(clipped, policy_loss=lambda b, a: _surrogate(b, a, *expected))
    same(value_and_grad(objective, batch), value_and_grad(plain, batch))


def test_bapo_targets_reach_different_bounds(batch):
    """The cases above are different ones."""
    batch = batch.replace(old_logp_RT=batch.logp_RT - 2 * (batch.logp_RT - batch.old_logp_RT))
    batch = batch.replace(rows=batch.rows.replace(advantage_R=jnp.array([0.5, -1.2, 0.5, -1.0])))
    assert len({bapo_bounds(batch, target) for target in (0.0, 0.6, 0.7, 0.99)}) >= 3
    assert bapo_bounds(batch, 0.0) == (0.6, 1.2)


def _surrogate(batch, a_RT, low, high):
    from iiblpo_jax.objectives.clipping import clipped_surrogate, ratio

    return clipped_surrogate(batch, a_RT, ratio(batch), clip_low=1 - low, clip_high=high - 1)
