"""What a step came to task by task, where several are mixed: `reward/<task>/*`. On the host."""

import numpy as np

from iiblpo_jax.rollout.forest import LENGTH


def task_metrics(
    task_R: np.ndarray, parent_R: np.ndarray, length_R: np.ndarray, finish_R: np.ndarray, reward_R: np.ndarray
) -> dict[str, float]:
    """Mean reward, response length in tokens and share of truncated responses of every task that was asked.

    Over the roots alone: they are samples of the policy, whichever of them have branches.

    Args:
      task_R: name of the task that a response answers.
      parent_R, length_R, finish_R: as in Forest.
      reward_R: of the responses.
    """
    found: dict[str, float] = {}
    for task in sorted(set(task_R.tolist())):
        mine_R = (parent_R < 0) & (task_R == task)
        found |= {
            f"reward/{task}/mean": float(reward_R[mine_R].mean()),
            f"reward/{task}/length": float(length_R[mine_R].mean()),
            f"reward/{task}/truncated": float((finish_R[mine_R] == LENGTH).mean()),
        }
    return found
