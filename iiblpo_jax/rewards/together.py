"""Grading that several processes share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.experimental import multihost_utils

from iiblpo_jax.rewards.scorer import Scorer
from iiblpo_jax.rewards.verifier import Problem

if TYPE_CHECKING:
    from iiblpo_jax.data.task import Task


def make_scorer(config, tasks: Sequence[Task]) -> Scorer:
    """The verifier pool of a config."""
    return Scorer(tasks, workers=config.data.verifiers, timeout_s=config.data.verifier_timeout)


def score_together(
    scorer: Scorer, problems: Sequence[Problem], responses: Sequence[str]
) -> tuple[np.ndarray, dict[str, int]]:
    """`Scorer.score` of responses that every process has: each verifies its share, and all get all rewards."""
    count, index = jax.process_count(), jax.process_index()
    if count == 1:
        return scorer.score(problems, responses)
    rewards = np.zeros(len(responses), np.float32)
    rewards[index::count], counts = scorer.score(problems[index::count], responses[index::count])
    found = np.array(list(counts.values()), np.int32)
    rewards, found = (x.sum(0) for x in multihost_utils.process_allgather((rewards, found)))
    return rewards, dict(zip(counts, found.tolist(), strict=True))
