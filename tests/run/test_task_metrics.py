"""`reward/<task>/*` of a hand-made step: three prompts of two tasks, a root and a branch each."""

import types

import numpy as np
import pytest

from iiblpo_jax.rollout.forest import LENGTH, STOP
from iiblpo_jax.run.task_metrics import task_metrics


def test_tasks_are_counted_apart_over_their_roots():
    problems = [types.SimpleNamespace(task=task) for task in ("sums", "gym:chain_sum", "sums")]
    forest = types.SimpleNamespace(
        parent_R=np.array([-1, 0, -1, 2, -1, 4]),
        length_R=np.array([3, 9, 5, 9, 8, 0]),
        finish_R=np.array([STOP, LENGTH, STOP, STOP, LENGTH, LENGTH]),
        group_size=2,
    )
    reward_R = np.array([1, 0, 0.25, 1, 0, 0], np.float32)
    assert task_metrics(problems, forest, reward_R) == pytest.approx(
        {
            "reward/sums/mean": 0.5,
            "reward/sums/length": 5.5,
            "reward/sums/truncated": 0.5,
            "reward/gym:chain_sum/mean": 0.25,
            "reward/gym:chain_sum/length": 5.0,
            "reward/gym:chain_sum/truncated": 0.0,
        }
    )
