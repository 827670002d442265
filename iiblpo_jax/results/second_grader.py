"""Where a second grader thinks otherwise of the samples of an evaluation."""

from collections.abc import Sequence

import numpy as np

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.prompts import Prompt
from iiblpo_jax.data.task import Task
from iiblpo_jax.results.attempts import Attempts
from iiblpo_jax.rewards.audit import KINDS, Pair, grades, report
from iiblpo_jax.rewards.scorer import Grades


def check_grader(name: str) -> None:
    """Raises InputError where there is no second grader of that name."""
    if name and name not in KINDS:
        raise InputError(f"--second_grader={name} is not known; use one of {', '.join(KINDS)}")


def disagreements(
    task: Task, prompts: Sequence[Prompt], attempts: Sequence[Attempts], name: str, *, workers: int, timeout_s: float
) -> tuple[list[str], list[str]]:
    """All samples of a task by its own grader, as the file has it, and by another: the lines of `audit.report` that
    name one on which they differ, and those that count.

    Args:
      task, prompts, attempts: of the evaluation.
      name: of the other grader.
      workers, timeout_s: of the pool it judges in.
    """
    pairs = [
        Pair(
            name=f"{prompt.problem.id} sample {number}",
            gold=prompt.problem.answer,
            response=text,
            question=prompt.problem.question,
            task=task.name,
            metadata=prompt.problem.metadata,
            correct=None,
        )
        for prompt, one in zip(prompts, attempts, strict=True)
        for number, text in enumerate(one.texts)
    ]
    own = Grades(np.array([reward for one in attempts for reward in one.rewards], np.float32), {}, {})
    other = [KINDS[name]] * len(pairs)
    judged = grades(pairs, other, workers=workers, timeout_s=timeout_s)
    lines = list(report(pairs, {task.name: ([task.verifier] * len(pairs), own), name: (other, judged)}))
    counts = next(i for i, line in enumerate(lines) if line.startswith(f"{len(pairs)} pairs: "))
    return lines[:counts], lines[counts:]
