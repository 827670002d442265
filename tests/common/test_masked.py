"""Masked reductions against numpy on the selected entries."""

import numpy as np
import pytest

from iiblpo_jax.common import masked

X = np.array([[1.0, 2.0, 6.0], [np.nan, 5.0, 7.0], [np.inf, np.nan, np.nan]], np.float32)
MASK = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 0]], np.float32)


def test_reductions_over_everything():
    chosen = np.array([1.0, 2.0, 6.0, 5.0, 7.0])
    assert masked.sum(X, MASK) == 21
    assert masked.count(X, MASK) == 5
    np.testing.assert_allclose(masked.mean(X, MASK), 4.2, rtol=1e-6)
    np.testing.assert_allclose(masked.var(X, MASK), chosen.var(), rtol=1e-6)
    np.testing.assert_allclose(masked.std(X, MASK, ddof=1), chosen.std(ddof=1), rtol=1e-6)
    assert masked.max(X, MASK) == 7


def test_reductions_over_an_axis_with_an_empty_row():
    np.testing.assert_allclose(masked.mean(X, MASK, axis=1), [3, 6, 0])
    np.testing.assert_allclose(masked.var(X, MASK, axis=1), [14 / 3, 1, 0], rtol=1e-6)
    np.testing.assert_allclose(masked.std(X, MASK, axis=1, ddof=1), [7**0.5, 2**0.5, 0], rtol=1e-6)
    np.testing.assert_allclose(masked.sum(X, MASK, axis=0), [1, 7, 13])
    assert masked.mean(X, MASK, axis=1, keepdims=True).shape == (3, 1)


def test_spread_is_zero_exactly_where_the_entries_that_count_are_equal():
    np.testing.assert_array_equal(masked.spread(X, MASK, axis=1), [5, 2, 0])
    assert masked.spread(X, MASK) == 6
    equal = np.full((1, 8), 0.1, np.float32)
    seven = np.arange(8) < 7
    assert masked.std(equal, seven, axis=1) > 0  # the mean of seven equal numbers rounds
    assert masked.spread(equal, seven, axis=1) == 0


def test_variance_survives_a_large_offset():
    x = np.float32(4096) + np.array([0.0, 1.0, 2.0, 3.0], np.float32)
    np.testing.assert_allclose(masked.var(x, np.ones(4)), 1.25, rtol=1e-6)


@pytest.fixture
def groups():
    rng = np.random.default_rng(0)
    return rng.normal(size=24).astype(np.float32), rng.choice([3, 700, -2], 24), rng.random(24) < 0.7


@pytest.mark.parametrize("ddof", [0, 1])
def test_group_statistics_match_a_loop(groups, ddof):
    x, group, mask = groups
    got = [f(x, group, mask) for f in (masked.group_sum, masked.group_mean, masked.group_spread)]
    got += [masked.group_std(x, group, mask, ddof=ddof), masked.group_count(group, mask)]
    for i in range(24):
        chosen = x[(group == group[i]) & mask]
        want = [chosen.sum(), chosen.mean(), np.ptp(chosen), chosen.std(ddof=ddof), len(chosen)]
        np.testing.assert_allclose([values[i] for values in got], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ddof", [0, 1])
def test_weighed_statistics_match_a_loop(groups, ddof):
    x, group, mask = groups
    weight = np.random.default_rng(2).exponential(size=24).astype(np.float32)
    mean = masked.group_mean(x, group, mask, weight_N=weight)
    std = masked.group_std(x, group, mask, ddof=ddof, weight_N=weight)
    for i in range(24):
        mine = (group == group[i]) & mask
        centre = np.average(x[mine], weights=weight[mine])
        variance = np.average((x[mine] - centre) ** 2, weights=weight[mine]) * mine.sum() / (mine.sum() - ddof)
        np.testing.assert_allclose([mean[i], std[i]], [centre, variance**0.5], rtol=1e-5, atol=1e-6)
    ones = np.ones_like(x)
    np.testing.assert_allclose(
        masked.group_std(x, group, mask, ddof=ddof, weight_N=ones),
        masked.group_std(x, group, mask, ddof=ddof),
        rtol=1e-5,
    )
    weights = np.array([[1, 2, 1], [9, 3, 1], [1, 1, 1]], np.float32)
    np.testing.assert_allclose(masked.mean(X, MASK, axis=1, weight=weights), [2.75, 5.5, 0])


def test_group_statistics_follow_a_permutation(groups):
    x, group, mask = groups
    order = np.random.default_rng(1).permutation(24)
    straight = np.asarray(masked.group_std(x, group, mask))
    np.testing.assert_allclose(masked.group_std(x[order], group[order], mask[order]), straight[order], rtol=1e-6)


def test_degenerate_groups():
    x = np.array([0.1, 0.1, 0.1, 5.0, 9.0], np.float32)
    group, mask = np.array([0, 0, 0, 1, 2]), np.array([1, 1, 1, 1, 0])
    np.testing.assert_array_equal(masked.group_spread(x, group, mask), 0)
    np.testing.assert_array_equal(masked.group_count(group, mask), [3, 3, 3, 1, 0])
    np.testing.assert_array_equal(masked.group_std(x, group, mask, ddof=1)[3:], 0)
    np.testing.assert_array_equal(masked.group_mean(x, group, mask)[3:], [5, 0])
