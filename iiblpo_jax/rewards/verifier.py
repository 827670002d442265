"""What a grader reads, and what it reads out of a response."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from iiblpo_jax.rewards import gym, math
from iiblpo_jax.rewards.exact import INTEGER

if TYPE_CHECKING:
    from iiblpo_jax.data.task import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One question with its gold answer.

    Attributes:
      id: unique within a task, stable across runs, e.g. `gsm8k/main/train.jsonl:17`.
      question: the question as data, without the task's template.
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
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)


def answer_of(task: Task, response: str) -> str | None:
    """The final answer that majority voting compares, None where the response has none."""
    if task.verifier == "math":
        return math.last_boxed(response)
    if task.verifier == "gym":
        return gym.extract(response)
    if not task.marker.strip():
        found = INTEGER.search(response)
        return found.group() if found else None
    _, found, final = response.rpartition(task.marker)
    return final.strip() if found else None
