"""Which responses of a batch are one and the same solution, as numbers that a device can compare."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from iiblpo_jax.rewards.verifier import Problem

PLAN = "plan"  # name of the column
MALFORMED = -1


def plan_ids(
    plans: Mapping[str, Callable[[str], str | None]], problems: Sequence[Problem], responses: Sequence[str]
) -> np.ndarray:
    """[R] float32, as all columns of `Grades`: equal where a task calls two responses one plan; -1 where it knows none.

    Exact for fewer than 2^24 different plans a batch.

    Args:
      plans: of every task, by its name (data.task.Task.plan).
      problems, responses: as the scorer has them. Of all processes: numbers are given in the order of first use.
    """
    numbers: dict[tuple[str, str], int] = {}

    def number(problem: Problem, response: str) -> int:
        plan = plans[problem.task](response)
        return MALFORMED if plan is None else numbers.setdefault((problem.task, plan), len(numbers))

    return np.array(list(map(number, problems, responses)), np.float32)
