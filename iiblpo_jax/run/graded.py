"""What the host knows of rollouts: their responses and rewards, and which prompts of them have anything to teach.

Dynamic sampling (DAPO, Yu et al., arXiv 2503.14476, section 3.2): prompts whose responses are all right or all wrong
teach nothing, so a step asks others until P prompts do (train.refills).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from iiblpo_jax.bottleneck.selection import EPSILON
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.environments.interface import SEEN
from iiblpo_jax.rewards.scorer import PART, Grades
from iiblpo_jax.rewards.verifier import Problem
from iiblpo_jax.rollout.conversation import Heard
from iiblpo_jax.rollout.forest import LENGTH, Forest
from iiblpo_jax.run.task_metrics import task_metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class Graded:
    """P prompts that were asked, and their R responses.

    Attributes:
      problems: P of them.
      texts, rewards: of the responses.
      informative_P: bool; the rewards of the prompt's responses differ.
      columns: [R] by name, what else the method needs of the host (StepPrograms.judged).
    """

    problems: tuple[Problem, ...]
    texts: list[str]
    rewards: np.ndarray
    informative_P: np.ndarray
    columns: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def merged(self, fresh: Graded, take_P: np.ndarray) -> Graded:
        """What `step.sampled.merge` makes of two rollouts."""
        problems, texts = self.problems + fresh.problems, self.texts + fresh.texts
        size = len(self.texts) // len(self.problems)

        def take(*halves):
            return np.concatenate(halves).reshape(-1, size)[take_P].ravel()

        return Graded(
            problems=tuple(problems[p] for p in take_P),
            texts=[text for p in take_P for text in texts[p * size : (p + 1) * size]],
            rewards=take(self.rewards, fresh.rewards),
            informative_P=np.concatenate([self.informative_P, fresh.informative_P])[take_P],
            columns={name: take(column, fresh.columns[name]) for name, column in self.columns.items()},
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Told:
    """What the host is told of the R responses of one rollout, for its metrics.

    Attributes:
      task_R: name of the task.
      parent_R, length_R, finish_R: as in Forest.
      grades: of the responses.
    """

    task_R: np.ndarray
    parent_R: np.ndarray
    length_R: np.ndarray
    finish_R: np.ndarray
    grades: Grades


def graded(
    problems: Sequence[Problem],
    texts: list[str],
    grades: Grades,
    forest: Forest,
    *,
    columns: Sequence[str] = (),
    finished: bool,
) -> tuple[Graded, Told]:
    """A verified rollout.

    Args:
      problems: of its P prompts.
      texts, grades: of its responses.
      forest: its trajectories.
      columns: names of those of the grades that the method needs.
      finished: nothing is learnt from responses that were cut (FilterSpec.finished).
    """
    parent_R, length_R, finish_R = meshes.to_host((forest.parent_R, forest.length_R, forest.finish_R))
    task_R = np.repeat([problem.task for problem in problems], forest.group_size)
    valid_R = (length_R > 0) & ((finish_R != LENGTH) | (not finished))
    reward_PG, valid_PG = (x_R.reshape(len(problems), -1) for x_R in (grades.rewards, valid_R))
    teaches_P = informative(reward_PG, valid_PG)
    told = Told(task_R=task_R, parent_R=parent_R, length_R=length_R, finish_R=finish_R, grades=grades)
    found = Graded(
        problems=tuple(problems),
        texts=texts,
        rewards=grades.rewards,
        informative_P=teaches_P,
        columns={name: grades.columns[name] for name in columns},
    )
    return found, told


def with_turns(grades: Grades, heard: Heard) -> Grades:
    """Grades with what the environment has paid, the sum held to [0, 1], and when it has said the answer."""
    rewards = np.clip(grades.rewards + heard.reward_R, 0.0, 1.0)
    return grades._replace(rewards=rewards, columns=grades.columns | {SEEN: heard.seen_R})


def first_informative(kept: Graded, fresh: Graded) -> np.ndarray:
    """take_P of `step.sampled.merge`: the informative prompts in the order in which they were asked, then the others
    in that order."""
    teaches = np.concatenate([kept.informative_P, fresh.informative_P])
    return np.argsort(~teaches, kind="stable")[: len(kept.informative_P)].astype(np.int32)


def informative(reward_PG: np.ndarray, valid_PG: np.ndarray) -> np.ndarray:
    """Which prompts have a valid response that is paid more than the mean of theirs [P]: those of which the filter
    `contrast` keeps anything (`bottleneck.contrast_priority`)."""
    counted_P1 = np.maximum(valid_PG.sum(1, keepdims=True), 1)
    mean_P1 = np.where(valid_PG, reward_PG, 0).sum(1, keepdims=True) / counted_P1
    return (valid_PG & (reward_PG > mean_P1 + EPSILON)).any(1)


@dataclasses.dataclass(kw_only=True)
class Verified:
    """What the rollouts of one step were like, all of them: those that gave way to others too.

    Attributes:
      refills: most that the step may have (train.refills).
      rollout_s, reward_s: seconds of sampling and of verifying.
      sampled: `sampled_metrics` of each, on the device; none where nothing takes the place of what was sampled.
      hinted: metrics of what was found with hints.
    """

    refills: int
    rollout_s: float = 0.0
    reward_s: float = 0.0
    sampled: list[dict] = dataclasses.field(default_factory=list)
    hinted: dict[str, float] = dataclasses.field(default_factory=dict)
    _told: list[Told] = dataclasses.field(default_factory=list)
    _informative: int = 0
    _prompts: int = 0

    def add(self, told: Told, found: Graded, sampled: dict | None, *, rollout_s: float, reward_s: float) -> None:
        """Notes one more rollout."""
        self._told.append(told)
        self._informative += int(found.informative_P.sum())
        self._prompts = len(found.problems)
        self.sampled += [] if sampled is None else [sampled]
        self.rollout_s += rollout_s
        self.reward_s += reward_s

    def metrics(self, *, by_task: bool) -> dict[str, float]:
        """`told_metrics`; and where the step may have refills how many it had, how many of all prompts were
        informative, and how many of these were more than P and so let go."""
        found = told_metrics(self._told, by_task=by_task) | self.hinted
        if not self.refills:
            return found
        return found | {
            "rollout/refills": len(self._told) - 1,
            "rollout/informative": self._informative,
            "rollout/surplus": max(0, self._informative - self._prompts),
        }


def told_metrics(rollouts: Sequence[Told], *, by_task: bool) -> dict[str, float]:
    """What verifying the rollouts of a step came to: answers that ended badly, seconds in workers, the parts of the
    user's own rewards, and with `by_task` the metrics of every task; over all responses."""

    def joined(name):
        return np.concatenate([getattr(told, name) for told in rollouts])

    grades = [told.grades for told in rollouts]
    found: dict[str, float] = {}
    for name in grades[0].counts:
        found[f"reward/verifier_{name}"] = sum(g.counts[name] for g in grades)
    found["time/verifier_s"] = float(sum(np.nansum(g.columns["seconds"]) for g in grades))
    if by_task:
        reward_R = np.concatenate([g.rewards for g in grades])
        task_R, parent_R, length_R, finish_R = map(joined, ("task_R", "parent_R", "length_R", "finish_R"))
        found |= task_metrics(task_R, parent_R, length_R, finish_R, reward_R)
    for name in dict.fromkeys(name for g in grades for name in g.columns if PART in name):
        part = np.concatenate([g.columns[name] for g in grades if name in g.columns])
        found[f"reward/{name}"] = float(np.nanmean(part))
    return found
