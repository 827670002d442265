"""The cases of supervised fine-tuning: demonstrations of a file, or the gold solutions of a task's problems."""

from pathlib import Path

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.demonstrations import read_demonstrations
from iiblpo_jax.offline.examples import Case, Encoder
from iiblpo_jax.offline.sources import Fixed, Loaded


def find(loaded: Loaded, workdir: Path) -> tuple[Fixed, list[Case]]:
    """(the source that the offline section names, held-out cases).

    Raises:
      InputError: a file that does not fit, a task without a solution, a text that is too long.
    """
    config, offline, encode = loaded.config, loaded.config.offline, loaded.encode
    heldout = of_file(offline.heldout, encode) if offline.heldout else []
    if offline.data:
        train = of_file(offline.data, encode)
    else:
        train = [(example,) for task, _ in loaded.tasks for example in encode.solutions(task, task.train)]
        heldout = heldout or of_heldout_problems(loaded)
        if not train:
            names = ", ".join(task.name for task, _ in loaded.tasks)
            raise InputError(f"no problem of the task {names} has a gold solution; name a file in offline.data")
    source = Fixed(train, per_step=config.train.prompts_per_step, seed=config.data.seed, said="responses to learn")
    return source, heldout


def of_file(path: str | Path, encode: Encoder) -> list[Case]:
    """The demonstrations of a file, a case each."""
    return [(encode.text(row.place, row.prompt, row.response),) for row in read_demonstrations(path)]


def of_heldout_problems(loaded: Loaded) -> list[Case]:
    """The gold solutions of the first eval.problems held-out problems of every task, as far as they have one."""
    encode, limit = loaded.encode, loaded.config.eval.problems
    return [(example,) for task, _ in loaded.tasks for example in encode.solutions(task, task.heldout[:limit])]
