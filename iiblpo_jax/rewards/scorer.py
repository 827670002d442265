"""From responses to rewards: the one entry point of the trainer and the evaluator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.rewards.pool import Pool, count
from iiblpo_jax.rewards.verifier import Job, Problem, Verified

CORRECT = 0.999  # a reward from here on is a right answer; graders with partial credit give less to the rest


class Grades(NamedTuple):
    """What is known of R responses.

    Attributes:
      rewards: [R] float32 in [0, 1].
      columns: name -> [R] float32. `verdict`: what the checker in a worker said, before clipping; NaN where it said
        nothing, because the answer was decided without it or did not end well. `seconds`: how long the answer took
        in a worker; NaN where it was decided in this process.
      counts: answers that ended badly and score 0, `{"timeouts": int, "crashes": int}`.
    """

    rewards: np.ndarray
    columns: dict[str, np.ndarray]
    counts: dict[str, int]


class Scorer:
    """Scores responses with their tasks' verifiers. A context manager; not thread-safe.

    What a verifier decides at once is decided in this process; the rest goes to a pool whose workers start when the
    first such response arrives.

    Args:
      tasks: the tasks whose problems will be scored.
      workers: processes of the pool.
      timeout_s: wall-clock seconds an answer may take; one that takes longer scores 0.

    Raises:
      InputError: no workers, or no time.
    """

    def __init__(self, tasks: Sequence[Verified], *, workers: int = 2, timeout_s: float = 1.0):
        if workers < 1 or timeout_s <= 0:
            raise InputError(f"verifier pool with {workers} workers and {timeout_s} s an answer; both must be positive")
        self._verifiers = {task.name: task.verifier for task in tasks}
        graders = sorted({name for verifier in self._verifiers.values() for name in verifier.graders})
        preparations = dict.fromkeys(job for verifier in self._verifiers.values() for job in verifier.preparations)
        self._pool = Pool(graders, workers=workers, timeout_s=timeout_s, preparations=list(preparations))

    def score(self, problems: Sequence[Problem], responses: Sequence[str]) -> Grades:
        """Rewards, columns and counts.

        Args:
          problems: the problem of each response, R of them.
          responses: decoded responses without special tokens.
        """
        return self.settle(
            [self._verifiers[p.task].grade(p, response) for p, response in zip(problems, responses, strict=True)]
        )

    def settle(self, decisions: Sequence[float | Job]) -> Grades:
        """What R decisions of verifiers come to, as `score` gives it: the jobs among them are done."""
        found = list(decisions)
        hard = {index: decision for index, decision in enumerate(found) if isinstance(decision, Job)}
        replies = self._pool.grade(list(hard.values()))
        verdict, seconds = np.full((2, len(found)), np.nan, np.float32)
        for index, reply in zip(hard, replies, strict=True):
            found[index], seconds[index] = reply.score, reply.seconds
            verdict[index] = reply.score if reply.outcome == "ok" else np.nan
        rewards = np.clip(np.asarray(found, np.float32), 0.0, 1.0)
        return Grades(rewards, {"verdict": verdict, "seconds": seconds}, count(replies))

    def close(self) -> None:
        """Ends the workers."""
        self._pool.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *exception) -> None:
        self.close()
