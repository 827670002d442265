"""math-verify as other stacks call it, on the whole response with its own defaults: what `audit` compares with.

Tasks are graded by math/, which looks at the box alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from iiblpo_jax.rewards.math import last_boxed
from iiblpo_jax.rewards.verifier import Job, Problem, Verifier

GRADER = f"{__name__}:grade"


@dataclasses.dataclass(frozen=True)
class BareMath(Verifier):
    """Whatever math-verify makes of a response, in a worker."""

    graders = (GRADER,)

    def grade(self, problem: Problem, response: str) -> float | Job:
        """Always a job."""
        return Job(GRADER, (problem.answer, response))

    def answer(self, response: str) -> str | None:
        """See `math.last_boxed`."""
        return last_boxed(response)


def grade(gold: str, response: str) -> float:
    """1.0 if something in the response is the gold answer, as math-verify sees it, else 0.0."""
    from math_verify import parse, verify

    alone: Any = {"parsing_timeout": None}  # its clock would share the alarm of the process with the worker's
    return float(verify(parse(f"${gold}$", **alone), parse(response, **alone), timeout_seconds=None))


def warm_up() -> None:
    """As `math.warm_up`."""
    grade("\\frac{1}{2}", "It is $0.5$.")
