"""DAPO's soft overlong punishment, by its equation 13."""

import numpy as np

from iiblpo_jax.objectives import make_objective, with_overlong

LONGEST, BUFFER = 20, 5


def test_the_penalty_grows_over_the_buffer(make_rows):
    """Nothing up to 15 tokens, -(|o| - 15) / 5 up to 20, on top of the rewards that the method has."""
    length_R = np.array([1, 15, 16, 18, 20, 20])
    reward_R = np.array([1.0, 1.0, 1.0, 0.0, 1.0, 0.0], np.float32)
    method = with_overlong(make_objective("grpo", max_tokens=LONGEST), buffer=BUFFER, penalty=1.0)
    rows = make_rows(reward_R, np.zeros(6), length_R=length_R)
    np.testing.assert_allclose(method.reward_shaping(rows, None), [1, 1, 0.8, -0.6, 0, -1], rtol=1e-6)
    half = with_overlong(method, buffer=BUFFER, penalty=0.5)  # on top of what is shaped already
    np.testing.assert_allclose(half.reward_shaping(rows, None), [1, 1, 0.7, -0.9, -0.5, -1.5], rtol=1e-6)


def test_it_is_a_static_argument():
    first, second = (with_overlong(make_objective("grpo", max_tokens=8), buffer=2, penalty=1.0) for _ in range(2))
    assert first.reward_shaping == second.reward_shaping and hash(first) is not None
