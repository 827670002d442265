"""Checks a worked chain of additions and subtractions, `9-4=5;5+3=8;#8`. Cheap: runs in the caller's process."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence

from iiblpo_jax.rewards.exact import final_answer
from iiblpo_jax.rewards.verifier import Problem, Verifier

MARKER = "#"
INTEGER = r"(?:0|-?[1-9][0-9]{0,3})"  # bounded, so that text of any length is read in linear time
STEP = re.compile(rf"({INTEGER})([+-])([1-9])=({INTEGER});")
FORMAT = re.compile(rf"(?:{STEP.pattern})+#({INTEGER})")
MAX_CHARS = 1024


@dataclasses.dataclass(frozen=True)
class Countdown(Verifier):
    """Follows the chain; `metadata` of a problem has its `numbers`."""

    def grade(self, problem: Problem, response: str) -> float:
        """See `grade`."""
        return grade(response, problem.metadata["numbers"], problem.answer)

    def answer(self, response: str) -> str | None:
        """What stands after the last `#`."""
        return final_answer(response, marker=MARKER)


def grade(response: str, numbers: Sequence[int], target: str) -> float:
    """1.0 if the response is a true chain that uses every number once and ends, twice, at the target, else 0.0.

    Twice: the value of the last step and the number after `#`. Every step must be right, and go on where the one
    before it ended. Blanks around the whole response are ignored; anything else in it is an error.
    """
    steps, final = _parse(response)
    if not steps or final != target.strip():
        return 0.0
    value, used = int(steps[0][0]), [int(steps[0][0])]
    for before, sign, number, after in steps:
        if int(before) != value:
            return 0.0
        value += int(sign + number)
        used.append(int(number))
        if int(after) != value:
            return 0.0
    return float(value == int(final) and sorted(used) == sorted(numbers))


def plan(response: str) -> str | None:
    """Order and signs of a response, whether it is right or not: `9-4=5;5+3=8;#8` -> `9-4+3`; None if malformed.

    Malformed: not a chain in the format, or a step that does not go on with the result written before it.
    """
    steps, _ = _parse(response)
    if not steps or any(left[3] != right[0] for left, right in itertools.pairwise(steps)):
        return None
    return steps[0][0] + "".join(sign + number for _, sign, number, _ in steps)


def _parse(response: str) -> tuple[list[tuple[str, str, str, str]], str]:
    """The steps (before, sign, number, after) as text, and the final value; no steps if not in the format."""
    text = response.strip()
    if len(text) > MAX_CHARS or not FORMAT.fullmatch(text):
        return [], ""
    return STEP.findall(text), text.rpartition("#")[2]
