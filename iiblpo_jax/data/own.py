"""A task of the user's own: what the function that `task.path` names returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from iiblpo_jax.common import own_code
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data import gold
from iiblpo_jax.data.task import Task
from iiblpo_jax.rewards.own import Origin, Own
from iiblpo_jax.rewards.verifier import Problem

KEY = "task.path"


def make_own(reference: str, *, data_dir: Path | None, seed: int, options: Mapping[str, Any]) -> Task:
    """The task of `file.py:name`: name(**options) is called, with `seed` and `data_dir` if it has such parameters.

    Args:
      reference: the function.
      data_dir: the task's folder, None where none is set.
      seed: data.seed.
      options: of the task.

    Raises:
      InputError: the function cannot be had, does not take the options, or returns no task whose problems can be asked
        and graded.
    """
    reference = own_code.absolute(reference, Path.cwd())
    offered = {"seed": seed, "data_dir": data_dir}
    task = own_code.call(reference, offered, options, key=KEY)
    if not isinstance(task, Task):
        raise InputError(f"{KEY} = {reference!r} returned a {type(task).__name__}; return an iiblpo_jax.Task")
    _check(task, reference)
    gold.check_gold(task)
    if isinstance(task.verifier, Own):
        function = own_code.load(reference, key=KEY)
        arguments = own_code.arguments_of(function, offered, options, what=KEY)
        task = dataclasses.replace(task, verifier=with_origin(task.verifier, reference, KEY, arguments))
    return task


def with_origin(verifier: Own, reference: str, key: str, options: Mapping[str, Any] | None) -> Own:
    """The verifier, with where it can be had again: what `reference` names, or with options the task it returns."""
    return dataclasses.replace(verifier, origin=Origin(reference=reference, key=key, options=options))


def _check(task: Task, reference: str) -> None:
    seen = set()
    for problem in (*task.train, *task.heldout):
        if not isinstance(problem, Problem):
            raise InputError(f"{KEY} = {reference!r}: {str(problem)[:60]!r} among the problems; use iiblpo_jax.Problem")
        if problem.task != task.name:
            raise InputError(
                f"{KEY} = {reference!r}: problem {problem.id!r} is of task {problem.task!r} and the task is called "
                f"{task.name!r}; give both the same name"
            )
        if problem.id in seen:
            raise InputError(f"{KEY} = {reference!r}: two problems have the id {problem.id!r}; give each its own")
        seen.add(problem.id)
