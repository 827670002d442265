"""pass@k, avg@k and maj@k against enumeration."""

import itertools

import numpy as np
import pytest

from iiblpo_jax.results.passk import avg_at_k, maj_at_k, majority_vote, pass_at_k


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_equals_enumeration_of_all_subsets(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        outcome = np.array([1] * c + [0] * (n - c), bool)
        expected = np.mean([outcome[list(subset)].any() for subset in itertools.combinations(range(n), k)])
        assert pass_at_k(outcome[None], k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("code", [[0, 1, 0, 1, 0, 1], [2, 0, 1, 2, 0, 1], [3, 1, 0, 3, 1], [4, 2, 7]])
def test_pass_at_k_of_samples_that_share_out_codes_equals_enumeration(code):
    """All subsets that have every code as often as any other, but for one."""
    code, n = np.array(code), len(code)
    kinds = np.unique(code)
    for k, right in itertools.product(range(1, n + 1), itertools.product((False, True), repeat=n)):
        subsets = [list(subset) for subset in itertools.combinations(range(n), k)]
        counts = [[(code[subset] == kind).sum() for kind in kinds] for subset in subsets]
        even = [subset for subset, c in zip(subsets, counts, strict=True) if max(c) - min(c) <= 1]
        # Codes first, then samples of each: a subset's chance is that of its codes over how many have the same.
        chosen = [tuple(np.bincount(code[subset], minlength=9)) for subset in even]
        chance = np.array([1 / chosen.count(c) / len(set(chosen)) for c in chosen])
        expected = chance @ [np.array(right)[subset].any() for subset in even]
        assert pass_at_k([right], k, code_PN=code[None]) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_is_stable_for_many_samples():
    outcome = np.zeros((1, 4096), bool)
    outcome[0, 0] = True
    assert pass_at_k(outcome, 256) == pytest.approx(256 / 4096, rel=1e-9)  # one right: the chance to draw it


def test_pass_at_k_is_the_mean_over_problems():
    assert pass_at_k([[1, 1], [0, 0], [1, 0], [0, 1]], 1) == 0.5
    assert pass_at_k([[1, 1], [0, 0], [1, 0], [0, 1]], 2) == 0.75
    for bad in (0, 3):
        with pytest.raises(ValueError, match="samples"):
            pass_at_k([[1, 0]], bad)


def test_avg_at_k():
    assert avg_at_k([[1, 0, 1], [0, 0, 1]], 2) == 0.25


def test_majority_vote_by_hand():
    assert majority_vote(["7", "8", "7"], [True, False, True]) == 1.0
    assert majority_vote(["8", "8", "7"], [False, False, True]) == 0.0
    assert majority_vote(["7", "8", "9"], [True, False, False]) == pytest.approx(1 / 3)
    assert majority_vote(["8", None, None], [True, False, False]) == 1.0
    assert majority_vote([None, None], [False, False]) == 0.0


def test_majority_vote_is_the_expectation_of_a_random_tie_break():
    rng = np.random.default_rng(0)
    answers = ["a", "b", "b", "c", "a", None]
    right = [answer == "a" for answer in answers]
    draws = []
    for _ in range(4000):
        tally = {a: sum(x == a for x in answers) for a in "abc"}
        tied = [a for a, votes in tally.items() if votes == max(tally.values())]
        draws.append(rng.choice(tied) == "a")
    assert majority_vote(answers, right) == pytest.approx(np.mean(draws), abs=0.03)


def test_maj_at_k_averages_disjoint_blocks():
    answers = [["7", "7", "8", "8", "7"], ["1", "2", "2", "2", "2"]]
    right = [[a == "7" for a in answers[0]], [a == "1" for a in answers[1]]]
    # k = 2: blocks (7 7)=1 (8 8)=0 | (1 2)=.5 (2 2)=0; the fifth sample has no partner
    assert maj_at_k(answers, right, 2) == pytest.approx((1 + 0 + 0.5 + 0) / 4)
    assert maj_at_k(answers, right, 5) == 0.5
    assert maj_at_k(answers, right, 1) == pytest.approx(avg_at_k(right, 5))
