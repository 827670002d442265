"""Any reasoning-gym task by name (`gym:chain_sum`), graded by the package's own `score_answer`. Extra `[gym]`."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.heldout import check_sizes
from iiblpo_jax.data.task import SYSTEM, Task
from iiblpo_jax.rewards.gym import Gym, as_json, create
from iiblpo_jax.rewards.verifier import Problem

TEMPLATE = "{question}\nThink step by step, then give only the final answer as <answer>...</answer>."
REGISTERED = re.compile(r"""^(?:DATASET_NAME\s*=\s*|register_dataset\(\s*)["'](\w+)["']""", re.MULTILINE)
HELDOUT_SEED = 999_983  # one held-out set, whatever the training seed
SHOTS_SEED = 999_979  # the same worked problems, whatever the training seed
PROGRESS_SECONDS = 5.0  # between two lines about a generator that takes its time
UNSOLVED = "Integral("  # in the gold answer of an integral that SymPy could not solve


def make_gym(
    name: str, *, seed: int, train_size: int = 2000, heldout_size: int = 200, shots: int = 0, **options
) -> Task:
    """The reasoning-gym task `name` (without `gym:`), its generator configured by `options`.

    Training questions that also occur in the held-out set are dropped, and so are integrals without a solution. With
    `shots` the question follows so many worked problems, which are in neither set, as plain text and without a word on
    how to answer: small models go on with a pattern where they follow no instruction.
    `metadata` carries what the verifier needs: the generator's name, its options and the whole entry. `composite` is
    made of the members in its option `datasets` (`rewards.gym.create`).

    Raises:
      InputError: package absent, unknown task, or an option that is no plain value or that the generator refuses.
    """
    check_sizes(f"gym:{name}", train_size, heldout_size)
    try:
        options = json.loads(as_json(options))
    except (TypeError, ValueError):
        raise InputError(
            f"reasoning-gym task {name!r}: options {options} are no plain values; give numbers, texts, lists and dicts"
        ) from None
    worked = _problems(name, SHOTS_SEED, shots, options) if shots else []
    shown = {problem.question for problem in worked}
    heldout = [p for p in _problems(name, HELDOUT_SEED, heldout_size, options) if p.question not in shown]
    asked = shown | {problem.question for problem in heldout}
    return Task(
        name=f"gym:{name}",
        train=[problem for problem in _problems(name, seed, train_size, options) if problem.question not in asked],
        heldout=heldout,
        verifier=Gym(made=((name, as_json(options)),)),
        cue="\n<answer>",
        closing="</answer>",
        marker="<answer>",
        system=None if shots else SYSTEM,
        template="".join(map(_shot, worked)) + "{question}\n" if shots else TEMPLATE,
        chat=not shots,
    )


def _shot(problem: Problem) -> str:
    return f"{problem.question}\n<answer>{problem.answer}</answer>\n\n"


def _problems(name: str, seed: int, size: int, options: dict[str, Any]) -> list[Problem]:
    _check_package()
    try:
        generator = create(name, options, seed=seed, size=size)
        entries = list(_entries(generator, name))
    except Exception as error:  # the generators check their options with asserts, ValueErrors and TypeErrors alike
        raise InputError(
            f"reasoning-gym task {name!r} with options {options}: {type(error).__name__}: {error}; "
            f"see reasoning_gym.factory.DATASETS for the names and each task's config for its options"
        ) from error
    return [
        Problem(
            id=f"gym:{name}/{seed}/{index}",
            question=entry["question"],
            answer="" if entry["answer"] is None else str(entry["answer"]),
            task=f"gym:{name}",
            metadata={"dataset": name, "options": options, "entry": entry},
        )
        for index, entry in enumerate(entries)
        if UNSOLVED not in str(entry["answer"])
    ]


def _entries(generator, name: str) -> Iterator[dict[str, Any]]:
    """What a generator makes, with a line on stderr now and then while it takes its time."""
    began = said = time.monotonic()
    for number, entry in enumerate(generator, 1):
        yield entry
        if (now := time.monotonic()) - said >= PROGRESS_SECONDS:
            said = now
            print(f"gym:{name}: {number} of {len(generator)} problems made in {now - began:.0f} s", file=sys.stderr)


def _check_package() -> None:
    try:
        import reasoning_gym  # noqa: F401
    except ImportError as error:
        raise InputError("the task gym:* needs reasoning-gym; pip install 'iiblpo_jax[gym]'") from error


@functools.cache
def names() -> frozenset[str]:
    """The names of reasoning-gym's tasks, out of its source (importing it takes seconds); none without the package."""
    spec = importlib.util.find_spec("reasoning_gym")
    folders = (spec and spec.submodule_search_locations) or []
    sources = (path.read_text(encoding="utf-8") for folder in folders for path in Path(folder).rglob("*.py"))
    return frozenset(name for source in sources for name in REGISTERED.findall(source))
