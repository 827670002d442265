"""The environments of a run, asked for a batch of turns at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from iiblpo_jax.common.errors import InputError, warn
from iiblpo_jax.environments import own
from iiblpo_jax.environments.interface import Environment, Reply, State
from iiblpo_jax.rewards.pool import Pool, PoolError
from iiblpo_jax.rewards.pool import Reply as Ended
from iiblpo_jax.rewards.verifier import Job, Problem


class Conversed(Protocol):
    """What is needed of a task."""

    @property
    def name(self) -> str:
        """The key of its problems."""
        ...

    @property
    def environment(self) -> Any:
        """What answers its turns."""
        ...


class Turn(NamedTuple):
    """A turn to be answered: on which problem, in which state it began, and what was said."""

    problem: Problem
    state: State
    text: str


class Environments:
    """Begins conversations and answers turns. Has processes of its own: `close` ends them.

    Environments that are `bounded` answer in this process; the others in workers, which start here, because one that
    does not load is better known before anything is compiled.

    Args:
      tasks: all that will be asked about; each has an environment.
      processes: workers.
      timeout_s: wall-clock seconds a turn may take.

    Attributes:
      turn_end: text that ends a turn, the same for all.
      failed: turns that ended badly so far: the conversation is done there and goes unanswered.

    Raises:
      InputError: a task without an environment, two that end turns with different texts, one that does not load.
    """

    def __init__(self, tasks: Sequence[Conversed], *, processes: int = 2, timeout_s: float = 10.0):
        self._environments = {task.name: task.environment for task in tasks}
        self.turn_end, self.failed, self._timeout_s = turn_end_of(tasks), 0, timeout_s
        recipes = {
            name: own.recipe(environment, task=name)
            for name, environment in self._environments.items()
            if not _bounded(environment)
        }
        self._pool = Pool([], workers=processes, timeout_s=timeout_s, own=recipes)
        if recipes:
            self._start(recipes)

    def begin(self, problems: Sequence[Problem]) -> list[State]:
        """The states in which conversations on problems begin.

        Raises:
          InputError: an environment fails at it.
        """
        asked = [Turn(problem, None, "") for problem in problems]
        replies = self._ask(asked, [None] * len(asked))
        for problem, reply in zip(problems, replies, strict=True):
            if isinstance(reply, Ended):
                raise InputError(
                    f"the environment of task {problem.task!r} cannot begin problem {problem.id!r} "
                    f"({reply.error or reply.outcome}); mend its reset, or raise turns.timeout"
                )
        return [reply.state for reply in replies if isinstance(reply, Reply)]

    def answer(self, turns: Sequence[Turn]) -> list[Reply]:
        """A reply each; one that fails ends its conversation."""
        replies = self._ask(turns, [turn.text for turn in turns])
        return [
            self._failure(turn, reply) if isinstance(reply, Ended) else reply
            for turn, reply in zip(turns, replies, strict=True)
        ]

    def close(self) -> None:
        """Ends the workers."""
        self._pool.close()

    def _ask(self, turns: Sequence[Turn], texts: Sequence[str | None]) -> list[Reply | Ended]:
        replies: dict[int, Reply | Ended] = {}
        jobs: dict[int, Job] = {}
        for i, (turn, text) in enumerate(zip(turns, texts, strict=True)):
            environment = self._environments[turn.problem.task]
            if not _bounded(environment):
                jobs[i] = Job(turn.problem.task, ([turn.problem], [(turn.state, text)]))
            elif text is None:
                replies[i] = Reply(environment.reset(turn.problem), "")
            else:
                replies[i] = environment.step(turn.state, text)
        ended = self._pool.grade(list(jobs.values())) if jobs else []
        replies |= {i: _reply(end) for i, end in zip(jobs, ended, strict=True)}
        return [replies[i] for i in range(len(turns))]

    def _failure(self, turn: Turn, ended: Ended) -> Reply:
        if not self.failed:
            why = ended.error or f"{ended.outcome} after {ended.seconds:.1f} s, turns.timeout = {self._timeout_s:g}"
            warn(
                f"the environment of task {turn.problem.task!r} failed on {turn.text[-60:]!r} of {turn.problem.id!r} "
                f"({why}); the conversation ends there; further failures are only counted"
            )
        self.failed += 1
        return Reply(turn.state, "", done=True)

    def _start(self, recipes: Mapping[str, Any]) -> None:
        try:
            self._pool.start()
        except PoolError as error:
            raise InputError(
                f"the environment of task {', '.join(map(repr, recipes))} does not load in a worker process ({error}); "
                "define it at the top of a file that can be imported there"
            ) from None


def turn_end_of(tasks: Sequence[Conversed]) -> str:
    """The text that ends a turn in all tasks.

    Raises:
      InputError: a task without an environment, or two that end turns with different texts.
    """
    for task in tasks:
        if task.environment is None:
            raise InputError(
                f"task {task.name!r} has no environment to answer its turns; set turns.most=0, or use calculator, "
                "search, or a task of your own with an `environment`"
            )
    ends = {task.environment.turn_end: task.name for task in tasks}
    if len(ends) > 1:
        listed = ", ".join(f"{name} with {end!r}" for end, name in ends.items())
        raise InputError(f"the tasks end their turns differently ({listed}); train them in runs of their own")
    [turn_end] = ends
    if not turn_end:
        raise InputError(f"the environment of task {tasks[0].name!r} has an empty turn_end; give it a text")
    return turn_end


def _bounded(environment: Any) -> bool:
    return isinstance(environment, Environment) and environment.bounded


def _reply(ended: Ended) -> Reply | Ended:
    if ended.outcome != "ok":
        return ended
    told = ended.parts[0]
    return Reply(told["state"], str(told["observation"]), told["reward"], bool(told["done"]))
