"""Tasks by name."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ml_collections import ConfigDict

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.defaults import KNOBS, OWN_CODE, OWN_TASK
from iiblpo_jax.config.files import flatten
from iiblpo_jax.config.knobs import KINDS, is_of, nearest, shown
from iiblpo_jax.data import (
    arithmetic,
    calculator,
    competition,
    countdown,
    gold,
    gsm8k,
    gym,
    jsonl,
    rows,
    search,
    sums,
)
from iiblpo_jax.data.own import make_own
from iiblpo_jax.data.task import Task

_GENERATED: dict[str, Callable[..., Task]] = {
    "arithmetic": arithmetic.make_arithmetic,
    "calculator": calculator.make_calculator,
    "countdown": countdown.make_countdown,
    "search": search.make_search,
    "sums": sums.make_sums,
}
_FROM_FILES: dict[str, Callable[..., Task]] = {
    name: functools.partial(competition.make_competition, name) for name in rows.FORMATS
} | {"gsm8k": gsm8k.make_gsm8k}

GYM = "gym:"  # what follows is a name of reasoning-gym
NO_OPTIONS = {  # what a task takes from elsewhere
    "name": "task.name",
    "seed": "data.seed",
    "data_dir": "task.data_dir",
    "size": "train_size and heldout_size",
}
JSONL = f"{jsonl.NAME}:"  # what follows is any name
NAMES = (*_GENERATED, f"{GYM}<name>", *_FROM_FILES, jsonl.NAME, f"{JSONL}<name>", OWN_TASK)


def mistakes(config) -> list[str]:
    """What the names of tasks in a config, and the names and kinds of their options, get wrong; reads no data.

    What can be said of a config before anything is loaded (config/validation.py says the rest).
    """
    flat = {key: value for key, value in flatten(config).items() if key in KNOBS and KNOBS[key].is_kind(value)}
    options, mix = flat.get("task.options", {}), flat.get("task.mix", {})
    if mix:
        found = [line for name in mix for line in _mistakes(name, options.get(name) or {})]
        found += [
            f"task.options has {name!r}{nearest(name, mix)} and task.mix has no such task; with a mix, options are one "
            "dict a task"
            for name in options
            if name not in mix
        ]
    elif not flat.get("task.path"):
        found = [line for name in filter(None, [flat.get("task.name")]) for line in _mistakes(name, options)]
    else:
        found = []  # what a function of the user's own takes is known once it is loaded
    return found + [line for name in flat.get("eval.tasks", ()) for line in _mistakes(name, {})] + _own(flat)


def _own(flat: Mapping[str, Any]) -> list[str]:
    """Whether task.path is there where a task is called so, and the other way round."""
    mix, path = flat.get("task.mix", {}), flat.get("task.path")
    if path and mix and OWN_TASK not in mix:
        return [f"task.path is set and task.mix does not name it; give it a weight under the name {OWN_TASK}"]
    named = {*(mix or [flat.get("task.name")]), *flat.get("eval.tasks", ())}
    if OWN_TASK in named and not path:
        return [f"the task {OWN_TASK!r} is the one of task.path, which is empty; set it to {OWN_CODE}"]
    return []


def make_task(
    name: str, *, data_dir: str | Path | None = None, seed: int = 0, options: Mapping[str, Any] | None = None
) -> Task:
    """The task `name`, every gold answer checked.

    Args:
      name: `arithmetic`, `calculator`, `countdown`, `search`, `sums`, `gym:<any reasoning-gym name>`, or a dataset read
        from local files: `gsm8k`, `math`, `dapo_math`, `math500`, `aime24`, `aime25`, `olympiad`; or `jsonl`, rows of
        your own (`jsonl:NAME` where a mix has several).
      data_dir: where the files are, for the tasks that read files. Nothing is ever downloaded.
      seed: of generated training sets. Held-out sets do not depend on it.
      options: keyword options of the task, e.g. `{"k_max": 5}` for arithmetic; see each `make_*`.

    Raises:
      InputError: unknown name or option, an option of another kind or out of its range, missing or malformed files, a
        gold answer that does not parse.
    """
    if found := _mistakes(name, options or {}):
        raise InputError.of(found)
    options = dict(options or {})
    if name.startswith(GYM):
        return gym.make_gym(name.removeprefix(GYM), seed=seed, **options)
    if name == OWN_TASK:
        raise InputError(f"the task {OWN_TASK!r} is the one of task.path, which is empty; set it to {OWN_CODE}")
    if is_jsonl(name):
        task = jsonl.make_jsonl(name, data_dir=data_dir, **options)
    else:
        fixed = {"seed": seed} if name in _GENERATED else {"data_dir": data_dir}
        task = (_GENERATED | _FROM_FILES)[name](**fixed, **options)
    gold.check_gold(task)
    return task


def _mistakes(name: str, options: Any) -> list[str]:
    """One message for everything that is wrong with a task's name or its options."""
    if name.startswith(GYM) and gym.names() and name not in (known := {f"{GYM}{n}" for n in gym.names()}):
        return [f"unknown task {name!r}{nearest(name, known, cutoff=0.75)}; choose a name of reasoning_gym"]
    if name == OWN_TASK:
        return []
    if not (name.startswith(GYM) or name in _GENERATED or name in _FROM_FILES or is_jsonl(name)):
        return [f"unknown task {name!r}{nearest(name, NAMES)}; choose one of {', '.join(NAMES)}"]
    if not isinstance(options, Mapping | ConfigDict):
        return [f"task {name!r} has the options {shown(options)}; use {KINDS[dict]}"]
    from_files = jsonl.make_jsonl if is_jsonl(name) else competition.make_competition
    make = gym.make_gym if name.startswith(GYM) else _GENERATED.get(name, from_files)
    known = {key: kind for key, kind in get_type_hints(make).items() if key not in {*NO_OPTIONS, "options", "return"}}
    return [line for option, value in options.items() if (line := _option(name, option, value, known))]


def is_jsonl(name: str) -> bool:
    """Whether a task is rows of the user's own."""
    return name == jsonl.NAME or name.startswith(JSONL)


def _option(name: str, option: str, value: Any, known: Mapping[str, Any]) -> str:
    """What is wrong with one option; empty if nothing is."""
    if option in NO_OPTIONS:
        return f"task {name!r}: {option} is no option; use {NO_OPTIONS[option]}"
    if option not in known:
        if name.startswith(GYM):  # the generator has options of its own
            return ""
        return f"task {name!r} has no option {option}{nearest(option, known)}; it has {', '.join(sorted(known))}"
    kinds = get_args(known[option]) or (known[option],)
    wanted = [KINDS[kind] for kind in kinds if kind in KINDS]
    if not wanted or any(value is None if kind is type(None) else is_of(value, kind) for kind in kinds):
        return ""
    return f"task {name!r}: option {option} = {shown(value)}; use {' or '.join(wanted)}"


def make_tasks(section, *, seed: int) -> list[tuple[Task, float]]:
    """The (task, weight) pairs of a config's task section: its mix, or the one task that it names.

    With a mix, `section.options` and the folders below `section.data_dir` go by task name; `own` is that of
    `section.path`, and `jsonl:NAME` has the folder NAME.
    """
    folder = Path(section.data_dir) if section.data_dir else None
    if not section.mix:
        [name] = names_of(section)
        return [(named(section, name, data_dir=folder, seed=seed, options=section.options), 1.0)]
    folders = {name: folder / name.removeprefix(JSONL) if folder else None for name in section.mix}
    found = [
        (named(section, name, data_dir=folders[name], seed=seed, options=section.options.get(name)), float(weight))
        for name, weight in section.mix.items()
    ]
    names = [task.name for task, _ in found]
    if len(set(names)) < len(names):
        raise InputError(f"task.mix has two tasks of one name ({', '.join(names)}); rename yours")
    return found


def names_of(section) -> list[str]:
    """The names of a config's tasks as the registry knows them, in the order of `make_tasks`."""
    return list(section.mix) or [OWN_TASK if section.get("path") else section.name]


def named(section, name: str, *, data_dir: Path | None, seed: int, options: Mapping[str, Any] | None = None) -> Task:
    """`make_task` of a name that a config's task section uses, asked as it says: `own` may be among them."""
    if name == OWN_TASK and section.get("path"):
        plain = options.to_dict() if isinstance(options, ConfigDict) else dict(options or {})
        return asked_as(make_own(section.path, data_dir=data_dir, seed=seed, options=plain), section)
    return asked_as(make_task(name, data_dir=data_dir, seed=seed, options=options), section)


def asked_as(task: Task, section) -> Task:
    """The task with what a config's task section says of chats: their system message, what templates are told."""
    if not task.chat:
        return task
    system = task.system if section.system else None
    return dataclasses.replace(task, system=system, template_args=section.template_args.to_dict())
