"""MARA by hand, and the optimum that it moves: uniform over right answers where that of the plain reward is not."""

import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.objectives import advantages, make_objective

BETA = 0.1
REFERENCE = np.array([0.7, 0.1, 0.05, 0.15])  # two right answers, of which one is likely, and two wrong ones
REWARD = np.array([1.0, 1.0, 0.0, 0.0])


def mara(beta=BETA):
    return make_objective("mara", max_tokens=10, reference_kl=beta)


def optimum(reward, beta=BETA):
    """Of E[R] - beta KL(pi || reference), by ascent along its natural gradient in the logits, in numpy."""
    logits = np.log(REFERENCE)
    for _ in range(500):
        p = np.exp(logits - logits.max())
        p /= p.sum()
        logits = logits + reward - beta * np.log(p / REFERENCE)
    ascent = p * (reward - beta * np.log(p / REFERENCE))  # the plain gradient, but for the mean
    np.testing.assert_allclose(ascent - p * ascent.sum(), 0, atol=1e-9)
    return p


@pytest.fixture
def answers(make_rows):
    """Every answer once, as one group; the log-prob of the second is that of two tokens."""
    logp = np.log([[0.7, 1], [0.5, 0.2], [0.05, 1], [0.15, 1]])
    mask = [[1, 0], [1, 1], [1, 0], [1, 0]]
    return make_rows(REWARD, np.zeros(4), t=2, ref_logp_RT=np.where(mask, logp, 9.0), mask_RT=mask)


def test_the_optimum_is_uniform_over_the_right_answers(answers):
    plain, shaped = optimum(REWARD), optimum(np.asarray(mara().reward_shaping(answers, None), np.float64))
    assert plain[0] / plain[1] == pytest.approx(7.0, rel=1e-3)  # as in the reference
    assert shaped[0] == pytest.approx(shaped[1], rel=1e-3)
    assert min(shaped[:2].sum(), plain[:2].sum()) > 0.99


def test_rewards_and_advantages_by_hand(answers):
    expected = np.array([1.0, 1.0 + BETA * np.log(7.0), 0.0, 0.0])
    np.testing.assert_allclose(mara().reward_shaping(answers, None), expected, rtol=1e-6)
    np.testing.assert_allclose(advantages(mara(), answers), expected - expected.mean(), rtol=1e-5)


def test_each_group_has_its_anchor_among_what_is_kept(make_rows):
    """And one whose answers are all right still learns to be even."""
    logp = np.array([-1.0, -3.0, -2.0, -5.0, -4.0, -0.5])
    reward, group, keep = np.array([1.0, 1, 0.4, 1, 1, 1]), [0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 0]
    rows = make_rows(reward, group, keep_R=keep, ref_logp_RT=logp[:, None])
    shaped = np.asarray(mara().reward_shaping(rows, None))
    np.testing.assert_allclose(shaped, [1.0, 1.2, 0.4, 1.1, 1.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(advantages(mara(), rows)[3:], [0.05, -0.05, 0.0], rtol=1e-4)


def test_without_a_coefficient_it_is_dr_grpo_to_the_bit(answers):
    np.testing.assert_array_equal(
        advantages(mara(0.0), answers), advantages(make_objective("dr_grpo", max_tokens=10), answers)
    )
    assert mara().needs == ("ref_logp",) and jnp.isfinite(advantages(mara(), answers)).all()
