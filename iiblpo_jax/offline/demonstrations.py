"""The cases of supervised fine-tuning: demonstrations of a file, or the gold solutions of a task's problems."""

from pathlib import Path

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.demonstrations import read_demonstrations
from iiblpo_jax.data.registry import make_tasks
from iiblpo_jax.offline.examples import Case, Encoder
from iiblpo_jax.offline.stage import Cases


def find(config, encode: Encoder) -> Cases:
    """What `offline.data` and `offline.heldout` name.

    Raises:
      InputError: a file that does not fit, a task without a solution, a text that is too long.
    """
    offline = config.offline
    heldout = of_file(offline.heldout, encode) if offline.heldout else []
    if offline.data:
        return Cases(train=of_file(offline.data, encode), heldout=heldout)
    tasks = [task for task, _ in make_tasks(config.task, seed=config.data.seed)]
    train = [(example,) for task in tasks for example in encode.solutions(task, task.train)]
    if not train:
        names = ", ".join(task.name for task in tasks)
        raise InputError(f"no problem of the task {names} has a gold solution; name a file in offline.data")
    if not offline.heldout:
        limit = config.eval.problems
        heldout = [(example,) for task in tasks for example in encode.solutions(task, task.heldout[:limit])]
    return Cases(train=train, heldout=heldout)


def of_file(path: str | Path, encode: Encoder) -> list[Case]:
    """The demonstrations of a file, a case each."""
    return [(encode.text(row.place, row.prompt, row.response),) for row in read_demonstrations(path)]
