"""Group-relative advantages, worked by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.objectives.advantage import centred, leave_one_out, standardised

REWARD = jnp.array([1.0, 0.1, 0.0, 0.1, 0.0, 0.1, 0.0])
GROUP = jnp.array([7, 2, 7, 2, 7, 2, 7])  # group 7: 1 0 0 0; group 2: three equal rewards whose mean rounds


@pytest.fixture
def outcomes(make_rows):
    return lambda **fields: make_rows(REWARD, GROUP, **fields)


def test_standardised_is_sample_z_score(outcomes):
    """Rewards 1 0 0 0: mean 1/4, sample variance 1/4."""
    np.testing.assert_allclose(standardised(outcomes())[::2], [1.5, -0.5, -0.5, -0.5], rtol=1e-5)


def test_centred(outcomes):
    np.testing.assert_allclose(centred(outcomes())[::2], [0.75, -0.25, -0.25, -0.25], rtol=1e-6)


def test_leave_one_out_is_reward_minus_mean_of_the_others(outcomes):
    np.testing.assert_allclose(leave_one_out(outcomes())[::2], [1.0, -1 / 3, -1 / 3, -1 / 3], rtol=1e-6)


@pytest.mark.parametrize("advantage", [standardised, centred, leave_one_out])
def test_a_group_without_spread_is_exactly_zero(outcomes, advantage):
    np.testing.assert_array_equal(advantage(outcomes())[1::2], 0)


@pytest.mark.parametrize("advantage", [standardised, centred, leave_one_out])
def test_statistics_run_over_kept_rows_only(outcomes, make_rows, advantage):
    """Dropping rows in place equals leaving them out."""
    keep = jnp.array([1, 1, 1, 0, 0, 1, 1])
    chosen = np.flatnonzero(keep)
    alone = advantage(make_rows(REWARD[chosen], GROUP[chosen]))
    np.testing.assert_allclose(advantage(outcomes(keep_R=keep))[chosen], alone, rtol=1e-6)


def test_rewards_are_compared_with_the_rows_of_the_baseline(make_rows):
    """Two roots, 1 and 0, and two branches, 1 and 1: the mean is one half; nobody but a root is in it."""
    rows = make_rows(jnp.array([1.0, 0.0, 1.0, 1.0]), jnp.zeros(4), baseline_R=jnp.array([1, 1, 0, 0]))
    np.testing.assert_allclose(centred(rows), [0.5, -0.5, 0.5, 0.5])
    np.testing.assert_allclose(standardised(rows), [1, -1, 1, 1], rtol=1e-5)  # the spread is that of all four, 1/2
    np.testing.assert_allclose(leave_one_out(rows), [1, -1, 0.5, 0.5])


@pytest.mark.parametrize("advantage", [standardised, centred, leave_one_out])
def test_a_group_of_one_is_zero(make_rows, advantage):
    assert advantage(make_rows(jnp.array([3.0]), jnp.array([0])))[0] == 0
