"""Exact match of the final answer with the gold string. Cheap: runs in the caller's process."""

from __future__ import annotations

import dataclasses
import re

from iiblpo_jax.rewards.verifier import Problem, Verifier

INTEGER = re.compile(r"-?\d+")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exact(Verifier):
    """Compares strings.

    Attributes:
      marker: where the final answer starts in a response; a blank when the response is nothing but the answer.
    """

    marker: str

    def grade(self, problem: Problem, response: str) -> float:
        """See `grade`."""
        return grade(response, problem.answer, marker=self.marker)

    def answer(self, response: str) -> str | None:
        """See `final_answer`."""
        return final_answer(response, marker=self.marker)


def grade(response: str, answer: str, *, marker: str) -> float:
    """1.0 if the response's final answer is the gold answer, else 0.0."""
    return float(final_answer(response, marker=marker) == answer.strip())


def final_answer(response: str, *, marker: str) -> str | None:
    """Everything after the marker's last occurrence, surrounding blanks aside; None where it does not occur.

    With a blank marker the response is the answer, and its first integer counts.
    """
    if marker.strip():
        _, found, final = response.rpartition(marker)
        return final.strip() if found else None
    first = INTEGER.search(response)
    return first.group() if first else None
