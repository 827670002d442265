"""What n samples a problem say about k attempts: pass@k, avg@k, maj@k. Host side, plain numbers."""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np


def pass_at_k(correct_PN: np.ndarray, k: int, *, code_PN: np.ndarray | None = None) -> float:
    """Unbiased pass@k, mean over problems: 1 - C(n - c, k) / C(n, k) with c of n right (Chen et al. 2021, eq. 1).

    With `code_PN`, the kind that each sample is of: of k samples that have every kind as often as any other, but for
    one, as k trees of a rollout have their codes.

    The ratio of binomials is the product over i = n-c+1..n of (1 - k/i), which neither overflows nor cancels.

    Raises:
        ValueError: k is not in 1..n.
    """
    correct_PN = np.asarray(correct_PN, bool)
    n = correct_PN.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs 1 <= k <= {n} samples")
    if code_PN is not None:
        return float(np.mean([_shared_out(right, code, k) for right, code in zip(correct_PN, code_PN, strict=True)]))
    factor_N = 1.0 - k / np.arange(n, 0, -1.0)  # i = n, n-1, ..., 1; the first c of them belong to c right answers
    failure = np.concatenate([[1.0], np.cumprod(np.maximum(factor_N, 0.0))])
    return float(np.mean(1.0 - failure[correct_PN.sum(axis=1)]))


def _shared_out(correct_N: np.ndarray, code_N: np.ndarray, k: int) -> float:
    """pass@k of one problem, k = a Z + r: a samples of each of Z kinds, and one more of each of r kinds.

    The chance that all k are wrong is the coefficient of x^r in prod_z (f_z(a) + f_z(a + 1) x), where f_z(j) is that of
    j wrong ones among those of kind z, over that in the same product with 1 for every f that exists.
    """
    kinds = np.unique(code_N)
    each, further = divmod(k, len(kinds))
    wrong, all_ = np.ones(1), np.ones(1)
    for kind in kinds:
        right_n = correct_N[code_N == kind]
        n, bad = len(right_n), int((~right_n).sum())
        there = np.array([n >= each, n > each], float)
        lost = [math.comb(bad, j) / math.comb(n, j) if n >= j else 0.0 for j in (each, each + 1)]
        wrong, all_ = np.convolve(wrong, lost), np.convolve(all_, there)
    return 1.0 - wrong[further] / all_[further]


def avg_at_k(correct_PN: np.ndarray, k: int) -> float:
    """Mean accuracy of the first k samples of every problem."""
    return float(np.mean(np.asarray(correct_PN, float)[:, :k]))


def majority_vote(answers: Sequence[Hashable | None], correct: Sequence[bool]) -> float:
    """Chance that a vote among these samples is right, a tie being drawn fairly.

    Equal answers form a party, None (no answer found) abstains. The result is the mean over the largest parties of the
    share of right samples in each; it is deterministic, and the expectation of a random tie-break.
    """
    parties = defaultdict(list)
    for answer, right in zip(answers, correct, strict=True):
        if answer is not None:
            parties[answer].append(bool(right))
    if not parties:
        return 0.0
    largest = max(map(len, parties.values()))
    winners = [np.mean(votes) for votes in parties.values() if len(votes) == largest]
    return float(np.mean(winners))


def maj_at_k(answers: Sequence[Sequence[Hashable | None]], correct_PN: np.ndarray, k: int) -> float:
    """Mean over problems of `majority_vote` over k samples, averaged over the n // k disjoint blocks of k.

    Raises:
        ValueError: k is not in 1..n.
    """
    correct_PN = np.asarray(correct_PN, bool)
    n = correct_PN.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"maj@{k} needs 1 <= k <= {n} samples")
    votes = [
        majority_vote(row[start : start + k], right[start : start + k])
        for row, right in zip(answers, correct_PN, strict=True)
        for start in range(0, n - k + 1, k)
    ]
    return float(np.mean(votes))
