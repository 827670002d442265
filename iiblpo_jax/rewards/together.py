"""Grading that several processes share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from iiblpo_jax.rewards.scorer import Grades, Scorer
from iiblpo_jax.rewards.verifier import Job, Problem, Verified


def make_scorer(config, tasks: Sequence[Verified]) -> Scorer:
    """The verifier pool of a config."""
    return Scorer(tasks, workers=config.data.verifiers, timeout_s=config.data.verifier_timeout)


def score_together(scorer: Scorer, problems: Sequence[Problem], responses: Sequence[str]) -> Grades:
    """`Scorer.score` of responses that every process has: each verifies its share, and all get all of the grades."""
    return _together(scorer.score, problems, responses)


def settle_together(scorer: Scorer, decisions: Sequence[float | Job]) -> Grades:
    """`Scorer.settle` in the same way."""
    return _together(scorer.settle, decisions)


def _together(grade: Callable[..., Grades], *arguments: Sequence) -> Grades:
    """`grade` of arguments that all have an entry a response."""
    count, index = jax.process_count(), jax.process_index()
    if count == 1:
        return grade(*arguments)
    mine = grade(*(argument[index::count] for argument in arguments))

    def placed(share: np.ndarray) -> np.ndarray:
        whole = np.zeros(len(arguments[0]), np.float32)
        whole[index::count] = share
        return whole

    found = np.array(list(mine.counts.values()), np.int32)
    gathered = multihost_utils.process_allgather((jax.tree.map(placed, (mine.rewards, mine.columns)), found))
    (rewards, columns), found = jax.tree.map(lambda x: np.asarray(x).sum(0), gathered)
    return Grades(rewards, columns, dict(zip(mine.counts, found.tolist(), strict=True)))
