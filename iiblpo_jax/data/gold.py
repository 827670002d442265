"""Gold answers out of dataset rows, and the check that a verifier can read them.

math-verify may hang on an answer, and a dataset is somebody else's, so it reads them in a worker process.
"""

from __future__ import annotations

import functools
import re

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.task import Task
from iiblpo_jax.rewards import math as math_rewards
from iiblpo_jax.rewards.pool import Pool
from iiblpo_jax.rewards.verifier import Job, Problem, Verifier

PARSE_SECONDS = 5.0  # a gold answer takes milliseconds

DOLLARS = re.compile(r"(?<!\\)\$")  # of mathematics; `\$` is money
THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


def bare(answer: str) -> str:
    """An answer without the dollar signs of mathematics: `$\\frac{1}{2}$` -> `\\frac{1}{2}`, `$69$,$84$` -> `69,84`."""
    return DOLLARS.sub("", answer).strip()


def number(answer: str) -> str | None:
    """`$1,234.00` -> `1234.00`: a plain number without currency, degrees and thousands separators, or None."""
    if len(answer) > math_rewards.MAX_CHARS:  # the patterns take quadratic time on what is no number after all
        return None
    text = bare(answer).removeprefix("\\$").removeprefix("$")
    text = THOUSANDS.sub("", text.removesuffix("^\\circ").removesuffix("^{\\circ}").strip())
    return text if math_rewards.NUMBER.fullmatch(text) else None


def check_gold(task: Task) -> None:
    """Checks that the task's verifier can read every gold answer.

    Raises:
      InputError: an answer that does not parse: it would score every response 0.
    """
    for problem in (*task.train, *task.heldout):
        if not readable(task.verifier, problem.answer):
            place = problem.metadata.get("place", problem.id)
            raise InputError(f"{place}: gold answer {_short(problem)} does not parse; correct or remove that row")
    _reader(task.verifier).close()


@functools.lru_cache(maxsize=65536)
def readable(verifier: Verifier, answer: str) -> bool:
    """Whether `verifier` can read `answer` as a gold answer."""
    found = verifier.reads(answer)
    return _reader(verifier).run([found])[0] == [1.0] if isinstance(found, Job) else found


@functools.cache
def _reader(verifier: Verifier) -> Pool:
    """One worker, started by the first answer that is not decided without; `check_gold` ends it."""
    return Pool(verifier.readers, workers=1, timeout_s=PARSE_SECONDS)


def _short(problem: Problem) -> str:
    return repr(problem.answer if len(problem.answer) <= 60 else problem.answer[:60] + "...")
