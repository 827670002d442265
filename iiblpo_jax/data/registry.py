"""Tasks by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data import arithmetic, competition, countdown, gold, gsm8k, gym, rows, sums
from iiblpo_jax.data.task import Task

_GENERATED: dict[str, Callable[..., Task]] = {
    "arithmetic": arithmetic.make_arithmetic,
    "countdown": countdown.make_countdown,
    "sums": sums.make_sums,
}
_FROM_FILES: dict[str, Callable[..., Task]] = {
    name: functools.partial(competition.make_competition, name) for name in rows.FORMATS
} | {"gsm8k": gsm8k.make_gsm8k}

NAMES = (*_GENERATED, "gym:<name>", *_FROM_FILES)


def make_task(
    name: str, *, data_dir: str | Path | None = None, seed: int = 0, options: Mapping[str, Any] | None = None
) -> Task:
    """The task `name`, every gold answer checked.

    Args:
      name: `arithmetic`, `countdown`, `sums`, `gym:<any reasoning-gym name>`, or a dataset read from local files:
        `gsm8k`, `math`, `dapo_math`, `math500`, `aime24`, `aime25`, `olympiad`.
      data_dir: where the files are, for the tasks that read files. Nothing is ever downloaded.
      seed: of generated training sets. Held-out sets do not depend on it.
      options: keyword options of the task, e.g. `{"k_max": 5}` for arithmetic; see each `make_*`.

    Raises:
      InputError: unknown name or option, missing or malformed files, a gold answer that does not parse.
    """
    options = dict(options or {})
    if name.startswith("gym:"):
        if reserved := {"name", "seed", "size"} & set(options):
            raise InputError(
                f"task {name!r}: {', '.join(reserved)} is no option; use data.seed, train_size, heldout_size"
            )
        return gym.make_gym(name.removeprefix("gym:"), seed=seed, **options)
    if name in _GENERATED:
        make, fixed = _GENERATED[name], {"seed": seed}
    elif name in _FROM_FILES:
        make, fixed = _FROM_FILES[name], {"data_dir": data_dir}
    else:
        raise InputError(f"unknown task {name!r}; choose one of {', '.join(NAMES)}")
    _check_options(name, options)
    task = make(**fixed, **options)
    gold.check_gold(task)
    return task


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    make = _GENERATED.get(name, competition.make_competition)
    known = set(inspect.signature(make).parameters) - {"name", "seed", "data_dir"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise InputError(f"task {name!r} has no option {', '.join(unknown)}; it has {', '.join(sorted(known))}")


def make_tasks(section, *, seed: int) -> list[tuple[Task, float]]:
    """The (task, weight) pairs of a config's task section: its mix, or the one named task.

    With a mix, `section.options` and the folders below `section.data_dir` go by task name.
    """
    folder = Path(section.data_dir) if section.data_dir else None
    if not section.mix:
        return [(make_task(section.name, data_dir=folder, seed=seed, options=section.options), 1.0)]
    folders = {name: folder / name if folder else None for name in section.mix}
    return [
        (make_task(name, data_dir=folders[name], seed=seed, options=section.options.get(name)), float(weight))
        for name, weight in section.mix.items()
    ]
