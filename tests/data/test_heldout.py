"""The split by text, the draws that keep to one side of it, and the even choice."""

import itertools
import random
from collections import Counter

from iiblpo_jax.data.heldout import SHARE, even_over, is_heldout, training_draws


def test_one_text_in_eight_is_held_out():
    """Of 8,000 texts 1,000 +- 30 (standard deviation)."""
    held_out = sum(is_heldout(f"{n}+1=") for n in range(8000))
    assert abs(held_out - 8000 / SHARE) < 120


def test_draws_are_never_held_out_and_even_over_sizes():
    """Most draws of size 2 are redrawn, at size 2: sizes stay uniform, 300 +- 14 (standard deviation) of each."""
    draws = training_draws(random.Random(0), 2, 4, lambda rng, k: (k, rng.random()), lambda x: x[0] == 2 and x[1] < 0.9)
    found = list(itertools.islice(draws, 900))
    assert all(x >= 0.9 for k, x in found if k == 2)
    assert all(abs(n - 300) < 60 for n in Counter(k for k, _ in found).values())


def test_even_over_takes_turns_until_the_small_ones_run_out():
    assert even_over([[1], [20, 10], [300, 200, 100]], 5) == [1, 10, 100, 20, 200]
    assert even_over([[1], []], 5) == [1]
