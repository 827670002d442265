"""Which answers are one and the same to a majority vote: as the task's verifier judges, not as text."""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from iiblpo_jax.rewards.scorer import CORRECT
from iiblpo_jax.rewards.verifier import Job, Verifier

MAX_KINDS = 24  # of a problem's answers are compared with one another, those with the most votes; the rest as text


def parties(
    verifier: Verifier,
    answers: Sequence[Sequence[str | None]],
    settle: Callable[[Sequence[float | Job]], np.ndarray],
) -> list[list[str | None]]:
    """The answers [N][n] with every one replaced by the one that stands for all that are the same; None stays None.

    Being the same need not be transitive to a verifier: an answer joins the first of the more voted ones that it is the
    same as. Where a comparison ends badly, the answers to that problem are compared no further: one that hangs its
    checker would hang it with each of them.

    Args:
      verifier: of the task.
      answers: of N problems.
      settle: what decisions of the verifier come to, as an array; NaN for one that ended badly.
    """
    open_N = [[kind for kind, _ in _voted(row).most_common(MAX_KINDS)] for row in answers]
    stands_for: list[dict[str, str]] = [{kind: kind for kind in _voted(row)} for row in answers]
    while any(len(kinds) > 1 for kinds in open_N):
        pairs = [(n, kinds[0], other) for n, kinds in enumerate(open_N) for other in kinds[1:]]
        found = settle([verifier.same(first, other) for _, first, other in pairs])
        stuck = {n for (n, *_), value in zip(pairs, found, strict=True) if np.isnan(value)}
        for (n, first, other), value in zip(pairs, found, strict=True):
            if value >= CORRECT:
                stands_for[n][other] = first
        open_N = [
            [] if n in stuck else [kind for kind in kinds[1:] if stands_for[n][kind] == kind]
            for n, kinds in enumerate(open_N)
        ]
    return [
        [None if answer is None else kinds[answer] for answer in row]
        for row, kinds in zip(answers, stands_for, strict=True)
    ]


def _voted(answers: Sequence[str | None]) -> Counter[str]:
    return Counter(answer for answer in answers if answer is not None)
