"""Sampling against exact probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.rollout.sampling import Another, Sampling, sample, truncate

P = np.array([0.4, 0.3, 0.15, 0.1, 0.05])
LOGITS = jnp.log(jnp.array(P, jnp.float32))


def draws(sampling, n=20_000, logits=LOGITS, forbidden=None):
    uniform = jax.random.uniform(jax.random.key(0), (n,))
    blocked = None if forbidden is None else jnp.broadcast_to(forbidden, (n, logits.shape[0]))
    return sample(jnp.broadcast_to(logits, (n, logits.shape[0])), uniform, sampling, blocked)


def expected(kept, temperature=1.0):
    q = np.where(kept, P ** (1 / temperature), 0)
    return q / q.sum()


@pytest.mark.parametrize(
    "sampling, kept",
    [
        (Sampling(), [1, 1, 1, 1, 1]),
        (Sampling(temperature=0.5), [1, 1, 1, 1, 1]),
        (Sampling(top_k=2), [1, 1, 0, 0, 0]),
        (Sampling(top_p=0.71), [1, 1, 1, 0, 0]),
        (Sampling(top_p=0.69), [1, 1, 0, 0, 0]),
        (Sampling(min_p=0.3), [1, 1, 1, 0, 0]),
        (Sampling(top_k=3, top_p=0.8), [1, 1, 0, 0, 0]),  # top-p looks at .47 .35 .18: the first two hold .82
    ],
)
def test_frequencies_and_logprobs(sampling, kept):
    draw = draws(sampling)
    q = expected(kept, sampling.temperature)
    frequency = np.bincount(draw.token_B, minlength=5) / draw.token_B.shape[0]
    np.testing.assert_allclose(frequency, q, atol=0.015)
    raw = expected([1] * 5, sampling.temperature)
    np.testing.assert_allclose(draw.raw_logp_B, np.log(raw[draw.token_B]), atol=1e-5)
    np.testing.assert_allclose(draw.entropy_B, -(raw * np.log(raw)).sum(), rtol=1e-5)


@pytest.mark.parametrize("sampling", [Sampling(top_p=0.6), Sampling(top_k=40), Sampling(top_k=100, top_p=0.9)])
def test_truncation_of_a_large_vocabulary_keeps_what_a_sort_keeps(sampling):
    """More tokens than partial sums of a row; some are equal and some impossible."""
    logits_BV = jnp.round(jax.random.normal(jax.random.key(3), (4, 2_500)) * 30) / 10
    logits_BV = logits_BV.at[:, 7::9].set(-jnp.inf)
    kept_BV = np.asarray(truncate(jnp.exp(logits_BV), sampling)) > 0
    for kept_V, p_V in zip(kept_BV, np.exp(np.asarray(logits_BV, np.float64)), strict=True):
        order = np.sort(p_V)[::-1]
        least = order[sampling.top_k - 1] if sampling.top_k else 0.0
        order = order[(order >= least) & (order > 0)]
        inside = np.cumsum(order) - order < sampling.top_p * order.sum()
        np.testing.assert_array_equal(kept_V, (p_V >= order[inside].min()) & (p_V > 0))
        assert kept_V.sum() < 1_500


def test_forbidden_tokens_are_never_drawn():
    """And the log-prob of another one is what it was: they count as truncation."""
    draw = draws(Sampling(), forbidden=jnp.array([True, False, False, False, True]))
    frequency = np.bincount(draw.token_B, minlength=5) / draw.token_B.shape[0]
    np.testing.assert_allclose(frequency, expected([0, 1, 1, 1, 0]), atol=0.015)
    np.testing.assert_allclose(draw.raw_logp_B, np.log(P[draw.token_B]), atol=1e-5)


def test_a_forbidden_token_however_likely_leaves_the_others_their_odds():
    """Rows that pad the vocabulary may have any logits."""
    logits = LOGITS.at[0].add(60.0).at[4].add(1e4)
    forbidden = jnp.array([True, False, False, False, True])
    draw = draws(Sampling(), logits=logits, forbidden=forbidden)
    frequency = np.bincount(draw.token_B, minlength=5) / draw.token_B.shape[0]
    np.testing.assert_allclose(frequency, expected([0, 1, 1, 1, 0]), atol=0.015)
    assert np.isfinite(draw.raw_logp_B).all() and (draw.raw_logp_B < -50).all()
    greedy = draws(Sampling(temperature=0.0), n=4, logits=logits, forbidden=forbidden)
    assert greedy.token_B.tolist() == [1] * 4


def test_greedy_takes_the_likeliest():
    draw = draws(Sampling(temperature=0.0), n=4)
    assert draw.token_B.tolist() == [0] * 4
    np.testing.assert_allclose(draw.raw_logp_B, np.log(P[0]), rtol=1e-5)  # at temperature 1


def test_large_vocabulary_draws_match_their_probabilities():
    """More tokens than one block of the inverse-CDF search, most of them impossible."""
    logits = jnp.full(1_000, -jnp.inf).at[jnp.array([3, 127, 128, 700, 999])].set(LOGITS)
    draw = draws(Sampling(), logits=jnp.maximum(logits, -1e9))
    frequency = np.bincount(draw.token_B, minlength=1_000) / draw.token_B.shape[0]
    np.testing.assert_allclose(frequency[[3, 127, 128, 700, 999]], P, atol=0.015)
    assert frequency.sum() == pytest.approx(frequency[[3, 127, 128, 700, 999]].sum())


def test_a_draw_depends_on_its_own_number_alone():
    uniform = jax.random.uniform(jax.random.key(1), (8,))
    logits = jax.random.normal(jax.random.key(2), (8, 50))
    together = sample(logits, uniform, Sampling()).token_B
    alone = jnp.concatenate([sample(logits[i : i + 1], uniform[i : i + 1], Sampling()).token_B for i in range(8)])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("sampling, kept", [(Sampling(), [1, 1, 1, 1, 1]), (Sampling(top_p=0.8), [1, 1, 1, 0, 0])])
@pytest.mark.parametrize("forbidden", [None, [0, 1, 0, 0, 0]])
def test_drawing_without_replacement(sampling, kept, forbidden):
    """The third token after 0: its frequency is the sum over the second; what was left is 1 less both probabilities."""
    if forbidden is not None:  # truncation looks at what may be drawn
        kept = np.logical_and(kept, np.logical_not(forbidden)) if sampling.top_p == 1 else [1, 0, 1, 1, 0]
    n, q = 20_000, expected(kept)
    uniform_BN = jax.random.uniform(jax.random.key(1), (n, 2))
    zeros = jnp.zeros(n, jnp.int32)
    blocked = None if forbidden is None else jnp.broadcast_to(jnp.array(forbidden, bool), (n, 5))
    logits_BV, u_B = jnp.broadcast_to(LOGITS, (n, 5)), jax.random.uniform(jax.random.key(2), (n,))

    def drawn(earlier):
        another = Another(zeros == 0, zeros, zeros + earlier, uniform_BN)
        return sample(logits_BV, u_B, sampling, blocked, another)

    second, third = drawn(0), drawn(1)
    rest = np.where(np.arange(5) == 0, 0, q)
    np.testing.assert_allclose(np.bincount(second.token_B, minlength=5) / n, rest / rest.sum(), atol=0.015)
    np.testing.assert_allclose(second.left_B, rest.sum(), atol=1e-5)
    np.testing.assert_allclose(third.left_B, rest.sum() - q[second.token_B], atol=1e-5)
    assert (third.token_B != second.token_B).all() and (third.token_B != 0).all()
    pairs = np.zeros(5)
    for b in np.flatnonzero(rest):
        left = np.where(np.arange(5) == b, 0, rest)
        pairs += rest[b] / rest.sum() * left / left.sum()
    np.testing.assert_allclose(np.bincount(third.token_B, minlength=5) / n, pairs, atol=0.015)


def test_who_is_not_due_draws_as_ever():
    uniform_B = jax.random.uniform(jax.random.key(0), (50,))
    logits_BV, plain = jnp.broadcast_to(LOGITS, (50, 5)), draws(Sampling(), 50)
    due_B = jnp.arange(50) % 2 == 0
    another = Another(due_B, plain.token_B, jnp.zeros(50, jnp.int32), uniform_B[:, None])
    found = sample(logits_BV, uniform_B, Sampling(), None, another)
    assert ((found.token_B == plain.token_B) == ~due_B).all() and ((found.left_B == 1) == ~due_B).all()
    one_hot = jnp.where(jnp.arange(5) == 3, 0.0, -jnp.inf)
    another = another.replace(due_B=due_B | True, first_B=jnp.full(50, 3, jnp.int32))
    found = sample(jnp.broadcast_to(one_hot, (50, 5)), uniform_B, Sampling(), None, another)
    assert (found.token_B == 3).all() and (found.left_B == 0).all(), "nothing is left: it draws like any other"
