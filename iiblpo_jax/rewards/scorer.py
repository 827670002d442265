"""From responses to rewards: the one entry point of the trainer and the evaluator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from iiblpo_jax.common.errors import InputError, warn
from iiblpo_jax.rewards import calls
from iiblpo_jax.rewards.own import REWARD, Own
from iiblpo_jax.rewards.pool import Pool, PoolError, Reply, count
from iiblpo_jax.rewards.verifier import Job, Problem, Verified

PART = "/part/"  # in the names of columns that the user's own verifiers make
CORRECT = 0.999  # a reward from here on is a right answer; graders with partial credit give less to the rest


class Grades(NamedTuple):
    """What is known of R responses.

    Attributes:
      rewards: [R] float32 in [0, 1].
      columns: name -> [R] float32. `verdict`: what the checker in a worker said, before clipping; NaN where it said
        nothing, because the answer was decided without it or did not end well. `seconds`: how long the answer took
        in a worker; NaN where it was decided in this process. `<task>/part/<name>`: what the user's own verifier of
        the task called so; NaN where it did not.
      counts: answers that ended badly and score 0, `{"timeouts": int, "crashes": int}`.
    """

    rewards: np.ndarray
    columns: dict[str, np.ndarray]
    counts: dict[str, int]


class Scorer:
    """Scores responses with their tasks' verifiers. A context manager; not thread-safe.

    What a verifier decides at once is decided in this process; the rest goes to a pool whose workers start when the
    first such response arrives. Verifiers of the user's own have a pool of their own, and one worker of it is started
    here, because a verifier that does not load is better known before anything is compiled.

    Args:
      tasks: the tasks whose problems will be scored.
      workers: processes of the pool.
      timeout_s: wall-clock seconds an answer may take; one that takes longer scores 0.
      own_workers, own_timeout_s: the same of the user's own verifiers, a call of which has
      own_batch: responses at most.
      max_failures: share of the responses scored together that may end badly: `check` refuses more.

    Attributes:
      has_own: whether there are verifiers of the user's own.

    Raises:
      InputError: no workers, no time, or a verifier of the user's own that does not load in a worker.
    """

    def __init__(
        self,
        tasks: Sequence[Verified],
        *,
        workers: int = 2,
        timeout_s: float = 1.0,
        own_workers: int = 2,
        own_timeout_s: float = 10.0,
        own_batch: int = 16,
        max_failures: float = 1.0,
    ):
        if workers < 1 or timeout_s <= 0:
            raise InputError(f"verifier pool with {workers} workers and {timeout_s} s an answer; both must be positive")
        self._verifiers = {task.name: task.verifier for task in tasks}
        graders = sorted({name for verifier in self._verifiers.values() for name in verifier.graders})
        preparations = dict.fromkeys(job for verifier in self._verifiers.values() for job in verifier.preparations)
        self._pool = Pool(graders, workers=workers, timeout_s=timeout_s, preparations=list(preparations))
        self._timeout_s, self._own_timeout_s = timeout_s, own_timeout_s
        self._batch, self._max_failures = own_batch, max_failures
        own = {name: verifier.recipe() for name, verifier in self._verifiers.items() if isinstance(verifier, Own)}
        self._own = Pool([], workers=own_workers, timeout_s=own_timeout_s, own=own)
        self._first_failure, self.has_own = "", bool(own)
        if own:
            self._start(own)

    def score(self, problems: Sequence[Problem], responses: Sequence[str], *, of: int | None = None) -> Grades:
        """Rewards, columns and counts.

        Args:
          problems: the problem of each response, R of them.
          responses: decoded responses without special tokens.
          of: how many responses are scored together, where several processes share them; None = R. When so many have
            failed that `check` will refuse them, the user's own verifiers are not asked any further.
        """
        most_bad = self._max_failures * (len(responses) if of is None else of)
        decisions: list[float | Job] = [0.0] * len(responses)
        asked: dict[int, calls.Asked] = {}
        for index, (problem, response) in enumerate(zip(problems, responses, strict=True)):
            verifier = self._verifiers[problem.task]
            if isinstance(verifier, Own):
                asked[index] = calls.Asked(verifier, problem, response)
            else:
                decisions[index] = verifier.grade(problem, response)
        judged = calls.judge(self._own, list(asked.values()), batch=self._batch, most_bad=most_bad)
        replies = self._done(decisions) | dict(zip(asked, judged, strict=True))
        for index, reply in replies.items():
            if reply.outcome in ("timeout", "crash") and not self._first_failure:
                self._show(problems[index], responses[index], reply, own=index in asked)
        grades = _grades(decisions, replies)
        return grades._replace(columns=grades.columns | _parts(problems, replies))

    def settle(self, decisions: Sequence[float | Job]) -> Grades:
        """What R decisions of verifiers come to, as `score` gives it: the jobs among them are done."""
        return _grades(decisions, self._done(decisions))

    def check(self, counts: dict[str, int], total: int) -> None:
        """Raises InputError where more than `max_failures` of `total` responses ended badly."""
        bad = sum(counts.values())
        if bad > self._max_failures * total:
            first = f": {self._first_failure}" if self._first_failure else ""
            raise InputError(
                f"{bad} of {total} rewards failed, more than reward.max_failures = {self._max_failures:g} of them"
                f"{first}; mend the verifier, give it more time, or raise reward.max_failures"
            )

    def close(self) -> None:
        """Ends the workers."""
        self._pool.close()
        self._own.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _done(self, decisions: Sequence[float | Job]) -> dict[int, Reply]:
        """How the jobs among some decisions ended, by their index."""
        jobs = {index: decision for index, decision in enumerate(decisions) if isinstance(decision, Job)}
        return dict(zip(jobs, self._pool.grade(list(jobs.values())), strict=True))

    def _start(self, names: Iterable[str]) -> None:
        try:
            self._own.start()
        except PoolError as error:
            raise InputError(
                f"the verifier of task {', '.join(map(repr, names))} does not load in a worker process ({error}); "
                "define it at the top of a file that can be imported there"
            ) from None

    def _show(self, problem: Problem, response: str, reply: Reply, *, own: bool) -> None:
        """Keeps the first failure in words, and says it of the user's own verifiers: those can be mended."""
        limit = f"reward.timeout = {self._own_timeout_s:g}" if own else f"data.verifier_timeout = {self._timeout_s:g}"
        self._first_failure = calls.failure(problem, response, reply, limit=limit)
        if own:
            warn(f"{self._first_failure}; it scores 0; further failures are only counted")


def _grades(decisions: Sequence[float | Job], replies: Mapping[int, Reply]) -> Grades:
    """Decisions as grades; what needed a worker has a reply."""
    rewards = np.array([0.0 if isinstance(decision, Job) else decision for decision in decisions], np.float32)
    verdict, seconds = np.full((2, len(rewards)), np.nan, np.float32)
    for index, reply in replies.items():
        rewards[index] = reply.parts[0][REWARD] if reply.parts else reply.score
        seconds[index] = reply.seconds
        verdict[index] = rewards[index] if reply.outcome == "ok" else np.nan
    columns = {"verdict": verdict, "seconds": seconds}
    return Grades(np.clip(rewards, 0.0, 1.0), columns, count(list(replies.values())))


def _parts(problems: Sequence[Problem], replies: Mapping[int, Reply]) -> dict[str, np.ndarray]:
    """Columns of the named numbers of the user's own verifiers, the rewards aside."""
    found: dict[str, np.ndarray] = {}
    for index, reply in replies.items():
        for name, value in reply.parts[0].items() if reply.parts else ():
            if name != REWARD:
                column = f"{problems[index].task}{PART}{name}"
                found.setdefault(column, np.full(len(problems), np.nan, np.float32))[index] = value
    return found
