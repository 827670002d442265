"""reasoning-gym answers, graded by the package's own `score_answer`. It may give partial credit, in [0, 1].

Some of those scorers hand the answer to `eval`, or to SymPy's `parse_expr`, which does. An answer to such a task is
graded only if it is a plain expression, or a plain literal: the tables below say which.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from typing import Any

from iiblpo_jax.rewards.verifier import Job, Problem, Verifier

GRADER = f"{__name__}:grade"
MAX_CHARS = 16_384  # the longest gold answers (boards, schedules) have a few thousand

# Scorers that evaluate the answer. A test reads the installed package and fails when there are others.
EXPRESSIONS = frozenset(
    "countdown intermediate_integration polynomial_multiplication puzzle24 simple_integration".split()
)
LITERALS = frozenset("binary_matrix n_queens spiral_matrix string_insertion".split())
EXPRESSION = re.compile(r"[A-Za-z0-9 \t\n.,+\-*/^()]*")
ATTRIBUTE = re.compile(r"\.\s*[A-Za-z]")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*")
VARIABLE = re.compile(r"[A-Za-z][0-9]?")
FUNCTIONS = frozenset(
    """
    Abs acos acosh acot asin asinh atan atanh cos cosh cot coth csc exp ln log pi sec sin sinh sqrt tan tanh
    """.split()
)


@dataclasses.dataclass(frozen=True)
class Gym(Verifier):
    """Asks the generator; `metadata` of a problem has its `dataset`, `options` and `entry`."""

    graders = (GRADER,)

    def grade(self, problem: Problem, response: str) -> float | Job:
        """0 without a tagged answer, otherwise a job."""
        answer, made = extract(response), problem.metadata
        if answer is None:
            return 0.0
        return Job(GRADER, (made["dataset"], json.dumps(made["options"], sort_keys=True), made["entry"], answer))

    def answer(self, response: str) -> str | None:
        """See `extract`."""
        return extract(response)

    def reads(self, gold: str) -> bool:
        """Always: the gold answers are the generator's own, and some have none, because many are right."""
        return True


def extract(response: str) -> str | None:
    """Content of the last closed `<answer>...</answer>`, or None: no answer scores 0."""
    head, closed, _ = response.rpartition("</answer>")
    _, opened, answer = head.rpartition("<answer>")
    return answer.strip() if closed and opened and len(answer) <= MAX_CHARS else None


def grade(dataset: str, options: str, entry: dict[str, Any], answer: str) -> float:
    """The generator's own score of `answer` for `entry`; 0 for an answer that it would run as a program.

    Args:
      dataset: name of the reasoning-gym task.
      options: its configuration, as sorted JSON.
      entry: question, answer and metadata, as generated.
      answer: the response's answer.
    """
    source = entry["metadata"].get("source_dataset", dataset)  # the member of a composite task
    if not (harmless(dataset, answer) and harmless(source, answer)):
        return 0.0
    return float(_dataset(dataset, options).score_answer(answer, entry))


def harmless(dataset: str, answer: str) -> bool:
    """Whether the task's scorer may be given the answer: it does not evaluate it, or there is nothing to call in it."""
    if dataset in EXPRESSIONS:
        plain = EXPRESSION.fullmatch(answer) and not ATTRIBUTE.search(answer)
        return bool(plain) and all(name in FUNCTIONS or VARIABLE.fullmatch(name) for name in NAME.findall(answer))
    return dataset not in LITERALS or "(" not in answer


def warm_up() -> None:
    """Imports the package, so that the first graded answer is not charged for it."""
    import reasoning_gym  # noqa: F401


@functools.cache
def _dataset(name: str, options: str):
    import reasoning_gym

    return reasoning_gym.create_dataset(name, seed=0, size=1, **json.loads(options))
