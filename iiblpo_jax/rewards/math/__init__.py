"""Mathematical answers: the last box of the response against the gold answer.

`extract` runs in the caller's process and is linear in the response; `grade` parses with SymPy, which may hang or
exhaust memory on a hostile answer, and therefore belongs in a `Pool`. From text to verdict, one file a concern:
boxes, words and spelling (one way to write for many), reading (lists, intervals, equations), numbers, units,
quantities and values (formulas, by math-verify's parser), then judging with names, equations and regions.
docs/grading.md says what counts as the same answer.
"""

from __future__ import annotations

import dataclasses
import logging
import re

from iiblpo_jax.rewards.math.boxes import MAX_CHARS, last_boxed
from iiblpo_jax.rewards.math.numbers import rational
from iiblpo_jax.rewards.verifier import Job, Problem, Verifier

GRADER, PARSER = f"{__name__}:grade", f"{__name__}:parses"
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(/\d+)?")


@dataclasses.dataclass(frozen=True)
class Math(Verifier):
    """The last box of a response, equal to the gold answer as text or, by a worker's judgement, as mathematics."""

    graders = (GRADER,)
    readers = (PARSER,)

    def grade(self, problem: Problem, response: str) -> float | Job:
        """0 without a box, 1 for the very text of the gold answer; a job for any answer that takes judgement."""
        answer = extract(response, problem.answer)
        return Job(GRADER, (problem.answer, answer)) if isinstance(answer, str) else answer

    def answer(self, response: str) -> str | None:
        """See `last_boxed`."""
        return last_boxed(response)

    def same(self, one: str, other: str) -> float | Job:
        """As `grade` judges the one, were the other the gold answer."""
        return self.grade(Problem(id="", question="", answer=one, task=""), f"\\boxed{{{other}}}")

    def reads(self, gold: str) -> bool | Job:
        """Whether every formula in it can be read. Plain numbers are decided without."""
        if not gold.strip() or len(gold) > MAX_CHARS:
            return False
        return True if NUMBER.fullmatch(gold) else Job(PARSER, (gold,))


def extract(response: str, gold: str) -> float | str:
    """What can be decided at once: 1.0 or 0.0; otherwise the boxed answer, to be judged by `grade`."""
    answer = last_boxed(response)
    if not answer:
        return 0.0
    if _compact(answer) == _compact(gold):
        return 1.0
    if NUMBER.fullmatch(answer) and NUMBER.fullmatch(gold) and (right := rational(gold)) is not None:
        return float(rational(answer) == right)
    return answer


def grade(gold: str, answer: str) -> float:
    """1.0 if the two say the same, else 0.0: see docs/grading.md. No time-out of its own: see `Pool`."""
    from iiblpo_jax.rewards.math.judging import same  # with SymPy, which only workers import

    return float(same(gold, answer))


def parses(gold: str) -> bool:
    """Whether every formula in `gold` can be read; `grade` can do nothing with one that cannot."""
    from iiblpo_jax.rewards.math.judging import reads

    return reads(gold)


def warm_up() -> None:
    """Imports SymPy and math-verify and fills their caches, so that the first graded answer is not charged for it."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns about every time-out that is off
    grade("\\frac{x}{2} + \\sin^2 x", "\\binom{n}{2} - e^{-x} \\ln(x+1)")
    grade("y = \\sqrt{2}x^3", "\\left[-\\frac{\\sqrt{3}}{2}\\pi, \\log_2 5\\right)")


def _compact(answer: str) -> str:
    """Without blanks, but for those between digits: 1 1/2 is not 11/2."""
    return re.sub(r"\s+(?!\d)|(?<!\d)\s+", "", answer)
