"""Truth ratios by hand, and a p-value that tells models apart."""

import numpy as np
import pytest

from iiblpo_jax.results.unlearning import forget_quality, truth_ratios


def test_truth_ratio_by_hand():
    """P per token: right 1/4 of two tokens is 1/2; wrong 1/8 of three is 1/2 and 1/16 of two is 1/4."""
    logp = np.log([[1 / 4, 1 / 8, 1 / 16]])
    np.testing.assert_allclose(truth_ratios(logp, np.array([[2, 3, 2]])), [(1 / 2 + 1 / 4) / 2 / (1 / 2)])


def test_quality_is_one_for_the_same_model_and_exact_for_two_that_nothing_has_in_common():
    """Five against five without overlap: 2 of the C(10, 5) = 252 orders are as far apart."""
    ratio = np.arange(5.0)
    assert forget_quality(ratio, ratio) == pytest.approx(1.0)
    assert forget_quality(ratio, ratio + 10) == pytest.approx(2 / 252)
