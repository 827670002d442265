"""`reward/<task>/*` of a hand-made step: three prompts of two tasks, a root and a branch each."""

import numpy as np
import pytest

from iiblpo_jax.rollout.forest import LENGTH, STOP
from iiblpo_jax.run.task_metrics import task_metrics


def test_tasks_are_counted_apart_over_their_roots():
    task_R = np.repeat(["sums", "gym:chain_sum", "sums"], 2)
    parent_R, length_R = np.array([-1, 0, -1, 2, -1, 4]), np.array([3, 9, 5, 9, 8, 0])
    finish_R = np.array([STOP, LENGTH, STOP, STOP, LENGTH, LENGTH])
    reward_R = np.array([1, 0, 0.25, 1, 0, 0], np.float32)
    assert task_metrics(task_R, parent_R, length_R, finish_R, reward_R) == pytest.approx(
        {
            "reward/sums/mean": 0.5,
            "reward/sums/length": 5.5,
            "reward/sums/truncated": 0.5,
            "reward/gym:chain_sum/mean": 0.25,
            "reward/gym:chain_sum/length": 5.0,
            "reward/gym:chain_sum/truncated": 0.0,
        }
    )
