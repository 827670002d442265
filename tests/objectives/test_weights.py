"""Weights of prompts: their values, and the objectives that they climb, on a policy small enough to be exact."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.config.defaults import KNOBS
from iiblpo_jax.objectives import advantages, make_objective
from iiblpo_jax.objectives.weights import WEIGHTS, prompt_weights

REWARD = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]], np.float32)
VALID = np.array([[1, 1, 1, 1]] * 4 + [[1, 1, 0, 0]], bool)  # shares 1/4, 1/2, 1, floored to 1/8, 1


@pytest.mark.parametrize(
    "weight, power, expected",
    [
        ("none", 7.0, [1, 1, 1, 1, 1]),
        ("surprise", 1.0, [2, 1, 0, 3, 0]),
        ("surprise", 0.5, [2**0.5, 1, 0, 3**0.5, 0]),
        ("maxrl", 7.0, [4, 2, 1, 8, 1]),
        ("f_grpo", 2.0, [0.75**2, 0.25, 0, 0.875**2, 0]),
        ("pass_at_k", 3.0, [3 * 0.75**2, 0.75, 0, 3 * 0.875**2, 0]),
        ("pass_at_k", 1.0, [1, 1, 1, 1, 1]),
    ],
)
def test_by_hand(weight, power, expected):
    np.testing.assert_allclose(prompt_weights(REWARD, VALID, weight=weight, power=power), expected, atol=1e-6)


def test_the_table_of_weights_is_the_knobs():
    assert set(KNOBS["advantage.weight"].choices) == set(WEIGHTS)


def test_maxrl_on_dr_grpo_is_the_published_advantage(make_rows):
    """(R - mean) / mean."""
    reward = np.array([1, 0, 0, 0, 1, 1, 0, 1], np.float32)
    a = advantages(make_objective("dr_grpo", max_tokens=10), make_rows(reward, np.repeat([0, 1], 4)))
    w = prompt_weights(reward.reshape(2, 4), np.ones((2, 4), bool), weight="maxrl", power=1.0)
    mean = reward.reshape(2, 4).mean(1)
    np.testing.assert_allclose(a * np.repeat(w, 4), (reward - np.repeat(mean, 4)) / np.repeat(mean, 4), rtol=1e-5)


def expected_gradient(theta: float, n: int, weight: str) -> float:
    """E of (1/n) sum_i w A_i d log pi(x_i) over all groups of n coins of one bias, leave-one-out advantages."""
    p, total = 1 / (1 + np.exp(-theta)), 0.0
    for coins in itertools.product([0.0, 1.0], repeat=n):
        x = np.array(coins)
        w = float(prompt_weights(x[None], np.ones((1, n), bool), weight=weight, power=1.0)[0])
        chance = np.prod(np.where(x == 1, p, 1 - p))
        total += chance * w * np.mean((x - x.mean()) * n / (n - 1) * (x - p))
    return total


def test_without_a_weight_the_gradient_is_that_of_the_pass_rate():
    gradient = jax.grad(lambda theta: jax.nn.sigmoid(theta))(-0.5)
    assert expected_gradient(-0.5, 4, "none") == pytest.approx(float(gradient), rel=1e-5)


def test_maxrl_climbs_the_truncated_log_of_the_pass_rate():
    """On R - mean of n coins: -sum_{k < n} (1 - p)^k / k, the expansion of log p (the baseline costs the n-th term)."""

    def truncated(theta):
        return -sum((1 - jax.nn.sigmoid(theta)) ** k / k for k in range(1, 4))

    found = expected_gradient(-0.5, 4, "maxrl") * 3 / 4  # R - mean, not leave one out
    assert found == pytest.approx(float(jax.grad(truncated)(-0.5)), rel=1e-4)
    assert float(jax.grad(truncated)(jnp.float32(-0.5))) < float(jax.grad(jax.nn.log_sigmoid)(-0.5))
