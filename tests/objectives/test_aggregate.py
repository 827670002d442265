"""Aggregation weights, worked by hand on responses of 3, 1 and 0 counted tokens."""

import numpy as np
import pytest

from iiblpo_jax.objectives.aggregate import AGGREGATES

MASK = np.array([[1, 1, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]], np.float32)
EXPECTED = {
    "token-mean": [1 / 4, 1 / 4],
    "seq-mean-token-mean": [1 / 6, 1 / 2],
    "seq-mean-token-sum": [1 / 2, 1 / 2],
    "seq-mean-token-sum-norm": [1 / 20, 1 / 20],
}


@pytest.mark.parametrize("name", AGGREGATES)
def test_weights(name):
    weights = AGGREGATES[name](MASK, max_tokens=10)
    np.testing.assert_allclose(weights, MASK * np.array([*EXPECTED[name], 0])[:, None], rtol=1e-6)


@pytest.mark.parametrize("name", AGGREGATES)
def test_padding_rows_and_columns_change_nothing(name):
    padded = AGGREGATES[name](np.pad(MASK, ((0, 2), (0, 3))), max_tokens=10)
    np.testing.assert_array_equal(padded[:3, :4], AGGREGATES[name](MASK, max_tokens=10))


@pytest.mark.parametrize("name", AGGREGATES)
def test_nothing_counted_is_zero_not_nan(name):
    np.testing.assert_array_equal(AGGREGATES[name](np.zeros((2, 3), np.float32), max_tokens=10), 0)
