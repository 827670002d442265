"""Paired tests over seeds, what Holm's correction leaves of them, and ranks that only such tests make."""

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations

from scipy import stats

LEVEL = 0.05
FEWEST = 3  # seeds in common, with which a rank means something


def paired_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of the paired t-test: mean 0 of the differences; None for fewer than two or without spread."""
    n = len(differences)
    if n < 2 or statistics.stdev(differences) == 0:
        return None
    t = statistics.fmean(differences) / (statistics.stdev(differences) / math.sqrt(n))
    return float(2 * stats.t.sf(abs(t), n - 1))


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p-values that keep the chance of any false alarm (Holm, Scand. J. Statist. 6, 1979, 65-70).

    The k-th smallest of m times m + 1 - k, at least the one before it and at most 1.
    """
    adjusted, highest = [0.0] * len(ps), 0.0
    for k, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, (len(ps) - k) * ps[i]))
        adjusted[i] = highest
    return adjusted


def ranks(values: Mapping[str, Mapping[int, float]]) -> dict[str, int] | None:
    """arm -> rank, 1 the best, of arm -> seed -> value.

    An arm beats another if their paired difference is beyond LEVEL, Holm-corrected over all pairs. Two arms have
    different ranks only if all those up to the one beat all those from the other on: what no test separates, or a
    chain of such arms connects, shares a rank, one more than the number of arms above it. None where two arms have
    fewer than FEWEST seeds in common.
    """
    differences = {(a, b): _paired(values[a], values[b]) for a, b in combinations(values, 2)}
    if not differences or min(map(len, differences.values())) < FEWEST:
        return None
    ps = holm([1.0 if (p := paired_p(found)) is None else p for found in differences.values()])
    beats = set()
    for (pair, found), p in zip(differences.items(), ps, strict=True):
        if p < LEVEL:
            beats.add(pair if statistics.fmean(found) > 0 else pair[::-1])
    order = sorted(values, key=lambda arm: -sum((arm, other) in beats for other in values))
    found, rank = {}, 1
    for i, arm in enumerate(order):
        if all((above, below) in beats for above in order[:i] for below in order[i:]):
            rank = i + 1
        found[arm] = rank
    return found


def _paired(a: Mapping[int, float], b: Mapping[int, float]) -> list[float]:
    return [a[seed] - b[seed] for seed in a if seed in b]
