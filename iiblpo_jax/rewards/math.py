"""Mathematical answers: the last box of the response against the gold answer, judged by math-verify.

`extract` runs in the caller's process and is linear in the response; `grade` parses with SymPy, which may hang or
exhaust memory on a hostile answer, and therefore belongs in a `Pool`.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from typing import Any

from iiblpo_jax.rewards.verifier import Job, Problem, Verifier

GRADER, PARSER = f"{__name__}:grade", f"{__name__}:parses"
MAX_CHARS = 1024  # no gold answer of the supported datasets is half as long; a longer box is not an answer
MAX_BOXES = 8  # how many unclosed boxes are skipped, from the end, before giving up
BOXES = ("\\boxed", "\\fbox")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(/\d+)?")


@dataclasses.dataclass(frozen=True)
class Math(Verifier):
    """The last box of a response, equal to the gold answer as text or, by a worker's judgement, as mathematics."""

    graders = (GRADER,)
    readers = (PARSER,)

    def grade(self, problem: Problem, response: str) -> float | Job:
        """0 without a box, 1 for the very text of the gold answer; a job for any other answer."""
        answer = extract(response, problem.answer)
        return Job(GRADER, (problem.answer, answer)) if isinstance(answer, str) else answer

    def answer(self, response: str) -> str | None:
        """See `last_boxed`."""
        return last_boxed(response)

    def same(self, one: str, other: str) -> float | Job:
        """As `grade` judges the one, were the other the gold answer."""
        return self.grade(Problem(id="", question="", answer=one, task=""), f"\\boxed{{{other}}}")

    def reads(self, gold: str) -> bool | Job:
        """Whether math-verify parses it. Plain numbers are decided without."""
        if not gold.strip() or len(gold) > MAX_CHARS:
            return False
        return True if NUMBER.fullmatch(gold) else Job(PARSER, (gold,))


def last_boxed(text: str) -> str | None:
    """Content of the last closed `\\boxed{...}` (or `\\fbox{...}`, or `\\boxed 5`), nested braces included.

    Escaped braces do not count as braces. None if there is no closed box of at most `MAX_CHARS` characters among the
    last `MAX_BOXES`.
    """
    end = len(text)
    for _ in range(MAX_BOXES):
        start = max(text.rfind(box, 0, end) for box in BOXES)
        if start < 0:
            return None
        content = _content(text, start)
        if content is not None:
            return content.strip()
        end = start
    return None


def extract(response: str, gold: str) -> float | str:
    """What can be decided at once: 1.0 or 0.0; otherwise the boxed answer, to be judged by `grade`."""
    answer = last_boxed(response)
    if not answer:
        return 0.0
    return 1.0 if _compact(answer) == _compact(gold) else answer


def grade(gold: str, answer: str) -> float:
    """1.0 if math-verify finds the two equal as mathematics, else 0.0. No time-out of its own: see `Pool`.

    Sets in any order, fractions, decimals, percentages, units and equations `x = 5` are compared by value; tuples and
    intervals in order.
    """
    from math_verify import verify

    # math-verify's own time-outs share the one alarm of the process with the worker's, so they are off.
    return float(verify(_parse(gold), _parse(answer), timeout_seconds=None))


def parses(gold: str) -> bool:
    """Whether math-verify reads `gold` as mathematics; `grade` can do nothing with one that it does not."""
    return bool(_parse(gold, fallback_mode="no_fallback"))


def warm_up() -> None:
    """Imports math-verify and fills SymPy's caches, so that the first graded answer is not charged for it."""
    grade("\\frac{1}{2}", "0.5")


def _parse(answer: str, *, fallback_mode: str = "first_match") -> list:
    from math_verify import parse

    how: Any = {"fallback_mode": fallback_mode, "parsing_timeout": None}
    return parse(f"\\boxed{{{answer}}}", extraction_config=_config(), **how)


@functools.cache
def _config() -> tuple:
    from math_verify import LatexExtractionConfig

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns about every time-out that is off
    return (LatexExtractionConfig(boxed_match_priority=0),)


def _content(text: str, start: int) -> str | None:
    """Content of the box that starts at `start`, or None if it is not closed within MAX_CHARS."""
    name_end = start + next(len(box) for box in BOXES if text.startswith(box, start))
    rest = text[name_end : name_end + MAX_CHARS + 2]
    if rest.startswith(" "):  # `\boxed 5`: one word
        words = rest.split(maxsplit=1)
        return words[0].strip("$.,") if words and not words[0].startswith("{") else None
    if not rest.startswith("{"):
        return None
    depth, index = 0, 0
    while index < len(rest):
        if rest[index] == "\\":
            index += 1  # an escaped character, brace or not, is no brace
        elif rest[index] == "{":
            depth += 1
        elif rest[index] == "}":
            depth -= 1
            if depth == 0:
                return rest[1:index]
        index += 1
    return None


def _compact(answer: str) -> str:
    return "".join(answer.split())
