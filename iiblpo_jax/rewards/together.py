"""Grading that several processes share."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from iiblpo_jax.rewards.plans import PLAN, plan_ids
from iiblpo_jax.rewards.scorer import Grades, Scorer
from iiblpo_jax.rewards.verifier import Job, Problem, Verified


def make_scorer(config, tasks: Sequence[Verified]) -> Scorer:
    """The verifier pools of a config."""
    reward = config.reward
    return Scorer(
        tasks,
        workers=config.data.verifiers,
        timeout_s=config.data.verifier_timeout,
        own_workers=reward.processes,
        own_timeout_s=reward.timeout,
        own_batch=reward.batch,
        max_failures=reward.max_failures,
    )


def score_together(
    scorer: Scorer,
    problems: Sequence[Problem],
    responses: Sequence[str],
    *,
    plans: Mapping[str, Callable[[str], str | None]] | None = None,
) -> Grades:
    """`Scorer.score` of responses that every process has: each verifies its share, and all get all of the grades.

    With `plans`, of every task by its name, there is a column `plan` (plans.py) as well; every process makes all of it.

    Raises:
      InputError: in every process, where more of them ended badly than the scorer allows.
    """
    score = functools.partial(scorer.score, of=len(responses))
    grades = _together(score, problems, responses, names_differ=scorer.has_own)
    scorer.check(grades.counts, len(responses))
    if plans is None:
        return grades
    return grades._replace(columns=grades.columns | {PLAN: plan_ids(plans, problems, responses)})


def settle_together(scorer: Scorer, decisions: Sequence[float | Job]) -> Grades:
    """`Scorer.settle` in the same way."""
    return _together(scorer.settle, decisions)


def _together(grade: Callable[..., Grades], *arguments: Sequence, names_differ: bool = False) -> Grades:
    """`grade` of arguments that all have an entry a response; columns may have other names in every process."""
    count, index = jax.process_count(), jax.process_index()
    if count == 1:
        return grade(*arguments)
    mine = grade(*(argument[index::count] for argument in arguments))

    def placed(share: np.ndarray) -> np.ndarray:
        whole = np.zeros(len(arguments[0]), np.float32)
        whole[index::count] = share
        return whole

    absent = np.full(mine.rewards.shape, np.nan, np.float32)
    names = list(mine.columns)
    if names_differ:
        names = sorted({name for theirs in _gathered(names) for name in theirs})
    columns = {name: mine.columns.get(name, absent) for name in names}
    found = np.array(list(mine.counts.values()), np.int32)
    gathered = multihost_utils.process_allgather((jax.tree.map(placed, (mine.rewards, columns)), found))
    (rewards, columns), found = jax.tree.map(lambda x: np.asarray(x).sum(0), gathered)
    return Grades(rewards, columns, dict(zip(mine.counts, found.tolist(), strict=True)))


def _gathered(value: Any) -> list[Any]:
    """What every process has, as JSON: processes may differ in its size."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.asarray(multihost_utils.process_allgather(np.int32(text.size))).ravel()
    padded = np.zeros(lengths.max(), np.uint8)
    padded[: text.size] = text
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]
