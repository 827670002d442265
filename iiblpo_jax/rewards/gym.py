"""reasoning-gym answers, graded by the package's own `score_answer`. It may give partial credit, in [0, 1]."""

from __future__ import annotations

import functools
import json
from typing import Any

MAX_CHARS = 16_384  # the longest gold answers (boards, schedules) have a few thousand


def extract(response: str) -> str | None:
    """Content of the last closed `<answer>...</answer>`, or None: no answer scores 0."""
    head, closed, _ = response.rpartition("</answer>")
    _, opened, answer = head.rpartition("<answer>")
    return answer.strip() if closed and opened and len(answer) <= MAX_CHARS else None


def grade(dataset: str, options: str, entry: dict[str, Any], answer: str) -> float:
    """The generator's own score of `answer` for `entry`.

    Args:
      dataset: name of the reasoning-gym task.
      options: its configuration, as sorted JSON.
      entry: question, answer and metadata, as generated.
      answer: the response's answer.
    """
    return float(_dataset(dataset, options).score_answer(answer, entry))


def warm_up() -> None:
    """Imports the package, so that the first graded answer is not charged for it."""
    import reasoning_gym  # noqa: F401


@functools.cache
def _dataset(name: str, options: str):
    import reasoning_gym

    return reasoning_gym.create_dataset(name, seed=0, size=1, **json.loads(options))
