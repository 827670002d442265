"""Hint exploration: prompts without any reward are asked again with a hint (KEPO, arXiv 2602.00400).

    teacher    writes a hint with the gold answer in its prompt; the policy is asked with the hint in its own
    solution   the first half of the steps of the task's own solution begins the response: for vocabularies that have no
               words to write a hint with. This one is ours.

Whatever earns a reward then takes the place of random responses of its prompt, as an answer to the prompt alone
(step/hinted.py).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.common.padded import pad_rows
from iiblpo_jax.data.task import Task, first_steps, render
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.tokens.tokenizer import Tokenizer
from iiblpo_jax.rewards.scorer import Grades
from iiblpo_jax.rewards.verifier import Problem
from iiblpo_jax.rollout.forest import STOP, Forest, response_tokens
from iiblpo_jax.run.graded import Graded, informative
from iiblpo_jax.run.in_flight import PendingRollout
from iiblpo_jax.step.hinted import Ask, Replace
from iiblpo_jax.step.programs import hint_key
from iiblpo_jax.step.sampled import added


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hinting:
    """How a run explores with hints.

    Attributes:
      attempts: most rollouts with hints of a step.
      replaced: most responses of a prompt that give way.
      source: `teacher` or `solution`.
      tokens: of the longest hint.
      width: of prompts with hints.
      seed: train.seed.
      tasks: by name.
      tokenizer: of the policy.
      mesh: devices.
    """

    attempts: int
    replaced: int
    source: str
    tokens: int
    width: int
    seed: int
    tasks: Mapping[str, Task]
    tokenizer: Tokenizer
    mesh: jax.sharding.Mesh

    def explore(
        self, done: PendingRollout, kept: Graded, grade: Callable[[Sequence[Problem], list[str]], Grades]
    ) -> tuple[Graded, dict[str, float]]:
        """Asks prompts without any reward with hints until they have some, or the attempts are used up.

        Args:
          done: the rollout of the step; `done.sampled` becomes what is learnt from.
          kept: its responses.
          grade: verifies further responses.

        Returns:
          What `kept` has become, and metrics.
        """
        failed = [p for p in np.flatnonzero(~_by_prompt(kept).any(1)) if self._has_hint(kept.problems[p])]
        begun, attempt = len(failed), 0
        while failed and attempt < self.attempts:
            attempt += 1
            kept, found = self._attempt(done, kept, failed, attempt, grade)
            failed = [p for p in failed if p not in found]
        rescued = begun - len(failed)
        return kept, {"hint/prompts": begun, "hint/rescued": rescued, "hint/rollouts": attempt}

    def _attempt(self, done: PendingRollout, kept: Graded, failed: list, attempt: int, grade) -> tuple[Graded, set]:
        """One rollout of P prompts, the failed ones in turns, and what comes of it; the prompts it found answers to."""
        which_P = np.resize(failed, len(kept.problems))
        problems = [kept.problems[p] for p in which_P]
        of_hints, of_answers = jax.random.split(hint_key(self.seed, done.step, attempt))
        if self.source == "teacher":
            hints, begins = self._written(done, which_P, of_hints), [[] for _ in which_P]
            rows = [self._hinted(problem, hint) for problem, hint in zip(problems, hints, strict=True)]
        else:
            begins = [self.tokenizer.encode(first_steps(problem))[: self.tokens] for problem in problems]
            rows = [
                render(self.tasks[x.task], x, self.tokenizer) + begin for x, begin in zip(problems, begins, strict=True)
            ]
        forest = self._ask(done, Ask(*self._placed(rows, self.width), of_answers))
        size = forest.group_size
        begins_R = [begin for begin in begins for _ in range(size)]
        texts = self.tokenizer.decode_batch(
            [begin + tokens for begin, tokens in zip(begins_R, response_tokens(forest), strict=True)]
        )
        grades = grade([problem for problem in problems for _ in range(size)], texts)
        fits_R = self._fits(forest, done, np.array(list(map(len, begins_R))))
        draw = np.random.default_rng([self.seed, done.step, attempt])
        take_R = chosen(which_P, (grades.rewards > 0) & fits_R, size=size, most=self.replaced, draw=draw)
        if (take_R < 0).all():
            return kept, set()
        replace = Replace(
            forest, *self._placed(begins, max(1, self.tokens)), meshes.to_devices(take_R, self.mesh, "batch")
        )
        done.sampled = done.rest.send(replace)._replace(stats=done.sampled.stats)
        return put(kept, take_R, texts, grades), set((np.flatnonzero(take_R >= 0) // size).tolist())

    def _ask(self, done: PendingRollout, ask: Ask) -> Forest:
        """A further rollout, whose tokens are counted as the step's."""
        fresh = done.rest.send(ask)
        done.sampled = done.sampled._replace(stats=added(done.sampled.stats, fresh.stats))
        return fresh.forest

    def _written(self, done: PendingRollout, which_P: np.ndarray, key: jax.Array) -> list[str]:
        """A hint of the teacher's for each of the prompts."""
        batch = done.batch
        assert batch.shown_PS is not None and batch.shown_length_P is not None, (
            "batches have them where hints are written"
        )
        shown = batch.shown_PS[which_P], batch.shown_length_P[which_P]
        shown_PS, shown_len_P = meshes.to_devices(shown, self.mesh, "batch")
        forest = self._ask(done, Ask(shown_PS, shown_len_P, key, writes=True))
        return self.tokenizer.decode_batch(response_tokens(forest))

    def _hinted(self, problem: Problem, hint: str) -> list[int]:
        """The prompt with its hint; without it where that is too long."""
        task = self.tasks[problem.task]
        tokens = render(task, problem, self.tokenizer, hint=hint.strip())
        return tokens if len(tokens) <= self.width else render(task, problem, self.tokenizer)

    def _placed(self, rows: Sequence[list[int]], width: int) -> tuple[jax.Array, jax.Array]:
        rows_PW, length_P = meshes.to_devices(pad_rows(rows, width), self.mesh, "batch")
        return rows_PW, length_P

    def _fits(self, forest: Forest, done: PendingRollout, begin_R: np.ndarray) -> np.ndarray:
        """Which responses ended by themselves within T tokens, what they began with included."""
        length_R, finish_R = meshes.to_host((forest.length_R, forest.finish_R))
        return (finish_R == STOP) & (begin_R + length_R <= done.sampled.forest.tokens_RT.shape[1])

    def _has_hint(self, problem: Problem) -> bool:
        if self.source == "solution":
            return bool(first_steps(problem))
        return bool(self.tasks[problem.task].answer_hint(problem))

    def check(self) -> None:
        """Raises InputError where no training problem of any task has what a hint is made of."""
        if not any(self._has_hint(problem) for task in self.tasks.values() for problem in task.train):
            of, other = {
                "solution": ("solutions of several steps", "teacher"),
                "teacher": ("gold answers", "solution"),
            }[self.source]
            raise InputError(
                f"hint.source = {self.source} makes hints of {of} and no training problem has one; use "
                f"hint.source={other}, or hint.attempts=0"
            )


def chosen(which_P: np.ndarray, good_R: np.ndarray, *, size: int, most: int, draw: np.random.Generator) -> np.ndarray:
    """take_R of `step.hinted.Replace`: up to `most` random good responses a prompt, in random places of its group.

    Args:
      which_P: the prompt of the step that every prompt of the rollout with hints is.
      good_R: responses of that rollout that may be taken.
      size: responses of a prompt.
      most: of a prompt.
      draw: random numbers.
    """
    prompt_R, take_R = np.repeat(which_P, size), np.full(len(which_P) * size, -1, np.int32)
    for p in sorted(set(which_P.tolist())):
        good = draw.permutation(np.flatnonzero(good_R & (prompt_R == p)))[:most]
        places = p * size + draw.permutation(size)[: len(good)]
        take_R[places] = good[: len(places)]
    return take_R


def put(kept: Graded, take_R: np.ndarray, texts: Sequence[str], grades: Grades) -> Graded:
    """What is known of the responses once those of `take_R` have taken their places."""

    def choose(old_R, new_R):
        return np.where(take_R >= 0, new_R[take_R], old_R).astype(old_R.dtype)

    rewards = choose(kept.rewards, grades.rewards)
    reward_PG = rewards.reshape(len(kept.problems), -1)
    return dataclasses.replace(
        kept,
        texts=[old if i < 0 else texts[i] for old, i in zip(kept.texts, take_R, strict=True)],
        rewards=rewards,
        informative_P=informative(reward_PG, np.ones(reward_PG.shape, bool)),
        columns={name: choose(column, grades.columns[name]) for name, column in kept.columns.items()},
    )


def _by_prompt(kept: Graded) -> np.ndarray:
    return (kept.rewards > 0).reshape(len(kept.problems), -1)
