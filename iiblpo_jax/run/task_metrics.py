"""What a step came to task by task, where several are mixed: `reward/<task>/*`. On the host."""

from collections.abc import Sequence

import numpy as np

from iiblpo_jax.devices.mesh import to_host
from iiblpo_jax.rewards.verifier import Problem
from iiblpo_jax.rollout.forest import LENGTH, Forest


def task_metrics(problems: Sequence[Problem], forest: Forest, reward_R: np.ndarray) -> dict[str, float]:
    """Mean reward, response length in tokens and share of truncated responses of every task that was asked.

    Over the roots alone: they are samples of the policy, whichever of them have branches.

    Args:
      problems: of the P prompts.
      forest, reward_R: of the step.
    """
    parent_R, length_R, finish_R = to_host((forest.parent_R, forest.length_R, forest.finish_R))
    task_R = np.repeat([problem.task for problem in problems], forest.group_size)
    found: dict[str, float] = {}
    for task in sorted(set(task_R.tolist())):
        mine_R = (parent_R < 0) & (task_R == task)
        found |= {
            f"reward/{task}/mean": float(reward_R[mine_R].mean()),
            f"reward/{task}/length": float(length_R[mine_R].mean()),
            f"reward/{task}/truncated": float((finish_R[mine_R] == LENGTH).mean()),
        }
    return found
