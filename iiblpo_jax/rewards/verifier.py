"""What a task is verified by: one object that grades, reads a gold answer and names the answer in a response.

A kind of verifier is a subclass in a file of its own: exact.py, countdown.py, math.py, gym.py. Nothing here imports
JAX or the data package: the worker processes import these files too.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One question with its gold answer.

    Attributes:
      id: unique within a task, stable across runs, e.g. `gsm8k/main/train.jsonl:17`.
      question: the question as data, without the task's template.
      messages: a conversation to be gone on with, in place of the question alone: dicts of `role` and `content`, the
        last one the user's; empty where there is only the question.
      answer: the gold answer, bare (`72`, `\\frac{1}{2}`); empty where a reasoning-gym task has many right answers.
      rationale: a full gold response in the task's own format, final answer included, or None.
      task: name of the task, the key the `Scorer` looks verifiers up by.
      metadata: whatever the loader knows besides (level, subject, file and row, a generator's entry).
    """

    id: str
    question: str
    answer: str
    rationale: str | None = None
    task: str
    messages: tuple[Mapping[str, str], ...] = ()
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


class Job(NamedTuple):
    """What a worker process decides: the grader as `module:function`, and its picklable arguments."""

    grader: str
    args: tuple[Any, ...]


class Verifier(abc.ABC):
    """How the responses to a task are judged. Subclasses are frozen dataclasses: equal settings, equal verifiers.

    Attributes:
      graders: every `Job.grader` that `grade` may name; a worker imports them when it starts.
      readers: the same of `reads`.
      preparations: what a worker does once, when it starts and before any clock runs, so that no answer is charged for
        it; their results are not used.
    """

    graders: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()

    @property
    def preparations(self) -> tuple[Job, ...]:
        """See the class."""
        return ()

    @abc.abstractmethod
    def grade(self, problem: Problem, response: str) -> float | Job:
        """The score of a decoded response, where it costs nothing to know; otherwise a job whose result it is."""

    @abc.abstractmethod
    def answer(self, response: str) -> str | None:
        """The final answer of a response, which majority voting compares (`same`); None where it has none."""

    def same(self, one: str, other: str) -> float | Job:
        """1.0 where two answers (of `answer`) are one and the same to a majority vote, else 0.0; a job says either."""
        return float(one == other)

    def reads(self, gold: str) -> bool | Job:
        """Whether `gold` can be a gold answer: with one that cannot, every response would score 0. A job says 1.0."""
        return bool(gold.strip())


class Verified(Protocol):
    """What the `Scorer` needs of a task."""

    @property
    def name(self) -> str:
        """The key of its problems."""
        ...

    @property
    def verifier(self) -> Verifier:
        """What grades its responses."""
        ...
