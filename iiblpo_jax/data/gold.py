"""Gold answers out of dataset rows, and the check that a verifier can read them."""

from __future__ import annotations

import functools
import re

from iiblpo_jax.data.task import Problem, Task
from iiblpo_jax.errors import InputError
from iiblpo_jax.rewards import math as math_rewards

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(/\d+)?")
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def bare(answer: str) -> str:
    """An answer without surrounding blanks and dollar signs: `$\\frac{1}{2}$` -> `\\frac{1}{2}`."""
    text = answer.strip()
    while len(text) > 1 and text[0] == text[-1] == "$":
        text = text[1:-1].strip()
    return text


def number(answer: str) -> str | None:
    """`$1,234.00` -> `1234.00`: a plain number without currency, degrees and thousands separators, or None."""
    text = bare(answer).removeprefix("\\$").removeprefix("$")
    text = THOUSANDS.sub("", text.removesuffix("^\\circ").removesuffix("^{\\circ}").strip())
    return text if NUMBER.fullmatch(text) else None


def check_gold(task: Task) -> None:
    """Checks that the task's verifier can read every gold answer.

    Raises:
      InputError: an answer that does not parse: it would score every response 0.
    """
    if task.verifier == "gym":  # the generator's own answers; some have none, because many are right
        return
    for problem in (*task.train, *task.heldout):
        if not readable(task.verifier, problem.answer):
            place = problem.metadata.get("place", problem.id)
            raise InputError(f"{place}: gold answer {_short(problem)} does not parse; correct or remove that row")


@functools.lru_cache(maxsize=65536)
def readable(verifier: str, answer: str) -> bool:
    """Whether `verifier` can read `answer` as a gold answer. Plain numbers are decided without math-verify."""
    if not answer.strip():
        return False
    return verifier != "math" or NUMBER.fullmatch(answer) is not None or math_rewards.parses(answer)


def _short(problem: Problem) -> str:
    return repr(problem.answer if len(problem.answer) <= 60 else problem.answer[:60] + "...")
