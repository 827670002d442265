"""Diversity measures: cases worked by hand and a literal second implementation."""

import math
import random
import time

import numpy as np
import pytest

from iiblpo_jax.results.diversity import distinct_n, diversity, lcs_length, self_bleu, self_rouge


def grams(tokens, n):
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def slow_bleu(hypothesis, references):
    """BLEU-4 written from its definition, one n-gram at a time."""
    logs = []
    for n in (1, 2, 3, 4):
        own = grams(hypothesis, n)
        if own:
            clipped = sum(min(own.count(g), max(grams(r, n).count(g) for r in references)) for g in set(own))
            logs.append(math.log((clipped if clipped else 0.1) / len(own)))
    gap = sorted((abs(len(r) - len(hypothesis)), len(r)) for r in references)[0][1]
    penalty = min(1.0, math.exp(1 - gap / len(hypothesis)))
    return penalty * math.exp(sum(logs) / len(logs))


def slow_lcs(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    return table[-1, -1]


def random_groups(count, seed):
    rng = random.Random(seed)
    return [[[rng.randrange(5) for _ in range(rng.randint(1, 12))] for _ in range(5)] for _ in range(count)]


def test_distinct_by_hand():
    samples = [[1, 2, 1, 2], [1, 2, 3]]
    assert distinct_n(samples, 1) == 3 / 7
    assert distinct_n(samples, 2) == 3 / 5  # 12 21 12 | 12 23
    assert distinct_n(samples, 4) == 1.0
    assert distinct_n([[1, 2]], 4) == 0.0


def test_self_bleu_by_hand():
    assert self_bleu([[1, 2, 3, 4, 5]] * 3) == pytest.approx(0.0)
    # One token in common, length 2: precisions 1/2 and 0.1/1, no brevity penalty.
    assert self_bleu([[1, 2], [1, 3]]) == pytest.approx(1 - math.sqrt(0.5 * 0.1))
    # Clipping: "1 1 1" against "1 2 2": unigrams 1/3, bigrams .1/2, trigrams .1/1; the other way round the same.
    assert self_bleu([[1, 1, 1], [1, 2, 2]]) == pytest.approx(1 - (1 / 3 * 0.05 * 0.1) ** (1 / 3))


def test_self_bleu_equals_the_definition():
    for group in random_groups(60, seed=0):
        expected = np.mean([slow_bleu(s, group[:i] + group[i + 1 :]) for i, s in enumerate(group)])
        assert self_bleu(group) == pytest.approx(1 - expected, abs=1e-12)


def test_lcs_equals_dynamic_programming():
    for a, b, *_ in random_groups(200, seed=1):
        assert lcs_length(a, b) == slow_lcs(a, b)


def test_self_rouge_by_hand():
    # LCS of 1234 and 2143 is 2 (for example 1 3): F1 = 4/8. With 1234 twice the pairs give 1, .5, .5.
    assert self_rouge([[1, 2, 3, 4], [2, 1, 4, 3]]) == 0.5
    assert self_rouge([[1, 2, 3, 4], [1, 2, 3, 4], [2, 1, 4, 3]]) == pytest.approx(1 - 2 / 3)


def test_empty_and_single_samples():
    assert self_bleu([[], [1, 2]]) == self_rouge([[1]]) == 1.0
    assert diversity([]) == {"distinct_1": 0.0, "distinct_4": 0.0, "self_bleu": 0.0, "self_rouge": 0.0}


def test_diversity_does_not_depend_on_the_order_of_samples_or_names_of_tokens():
    groups = random_groups(20, seed=2)
    shuffled = [[[97 - 7 * t for t in sample] for sample in reversed(group)] for group in reversed(groups)]
    assert diversity(groups) == pytest.approx(diversity(shuffled))


def test_cost_of_a_full_evaluation():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 18, size=(512, 16, 60)).tolist()
    start = time.process_time()
    diversity(groups)
    assert time.process_time() - start < 10
