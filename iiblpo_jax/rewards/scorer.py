"""From responses to rewards: the one entry point of the trainer and the evaluator."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.rewards import countdown, exact, gym, math
from iiblpo_jax.rewards.pool import Job, Pool

if TYPE_CHECKING:
    from iiblpo_jax.data.task import Task
    from iiblpo_jax.rewards.verifier import Problem

MATH_GRADER = "iiblpo_jax.rewards.math:grade"
GYM_GRADER = "iiblpo_jax.rewards.gym:grade"
GRADERS = {"math": MATH_GRADER, "gym": GYM_GRADER}


class Scorer:
    """Scores responses with their tasks' verifiers. A context manager; not thread-safe.

    Exact matches, chains and the easy cases of the other verifiers are decided in this process; the rest goes to a pool
    whose workers start when the first such response arrives.

    Args:
      tasks: the tasks whose problems will be scored.
      workers: processes of the pool.
      timeout_s: wall-clock seconds an answer may take; one that takes longer scores 0.

    Raises:
      InputError: no workers, or no time.
    """

    def __init__(self, tasks: Sequence[Task], *, workers: int = 2, timeout_s: float = 1.0):
        if workers < 1 or timeout_s <= 0:
            raise InputError(f"verifier pool with {workers} workers and {timeout_s} s an answer; both must be positive")
        self._tasks = {task.name: task for task in tasks}
        graders = sorted({GRADERS[task.verifier] for task in tasks if task.verifier in GRADERS})
        self._pool = Pool(graders, workers=workers, timeout_s=timeout_s)

    def score(self, problems: Sequence[Problem], responses: Sequence[str]) -> tuple[np.ndarray, dict[str, int]]:
        """(rewards [R] float32 in [0, 1], `{"timeouts": int, "crashes": int}`).

        Args:
          problems: the problem of each response, R of them.
          responses: decoded responses without special tokens.
        """
        decisions = [self._decide(*pair) for pair in zip(problems, responses, strict=True)]
        hard = [index for index, decision in enumerate(decisions) if isinstance(decision, Job)]
        scores, counts = self._pool.run([decisions[index] for index in hard])
        for index, score in zip(hard, scores, strict=True):
            decisions[index] = score
        return np.clip(np.asarray(decisions, np.float32), 0.0, 1.0), counts

    def close(self) -> None:
        """Ends the workers."""
        self._pool.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _decide(self, problem: Problem, response: str) -> float | Job:
        """The score, where it costs nothing to know; otherwise a job for the pool."""
        task = self._tasks[problem.task]
        if task.verifier == "exact":
            return exact.grade(response, problem.answer, marker=task.marker)
        if task.verifier == "countdown":
            return countdown.grade(response, problem.metadata["numbers"], problem.answer)
        if task.verifier == "math":
            answer = math.extract(response, problem.answer)
            return Job(MATH_GRADER, (problem.answer, answer)) if isinstance(answer, str) else answer
        answer = gym.extract(response)
        if answer is None:
            return 0.0
        options = json.dumps(problem.metadata["options"], sort_keys=True)
        return Job(GYM_GRADER, (problem.metadata["dataset"], options, problem.metadata["entry"], answer))


CORRECT = 0.999  # a reward from here on is a right answer; graders with partial credit give less to the rest
