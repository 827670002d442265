"""Gold answers out of dataset rows, and the check that a verifier can read them.

math-verify may hang on an answer, and a dataset is somebody else's, so it reads them in a worker process.
"""

from __future__ import annotations

import functools
import re

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.task import Task
from iiblpo_jax.rewards import math as math_rewards
from iiblpo_jax.rewards.pool import Job, Pool
from iiblpo_jax.rewards.verifier import Problem

PARSER = "iiblpo_jax.rewards.math:parses"
PARSE_SECONDS = 5.0  # a gold answer takes milliseconds

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
    if len(answer) > math_rewards.MAX_CHARS:  # the patterns take quadratic time on what is no number after all
        return None
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
    _reader().close()


@functools.lru_cache(maxsize=65536)
def readable(verifier: str, answer: str) -> bool:
    """Whether `verifier` can read `answer` as a gold answer. Plain numbers are decided without math-verify."""
    if not answer.strip() or (verifier == "math" and len(answer) > math_rewards.MAX_CHARS):
        return False
    if verifier != "math" or NUMBER.fullmatch(answer):
        return True
    return _reader().run([Job(PARSER, (answer,))])[0] == [1.0]


@functools.cache
def _reader() -> Pool:
    """One worker, started by the first answer that is no plain number; `check_gold` ends it."""
    return Pool([PARSER], workers=1, timeout_s=PARSE_SECONDS)


def _short(problem: Problem) -> str:
    return repr(problem.answer if len(problem.answer) <= 60 else problem.answer[:60] + "...")
