"""Verifiers of the user's own: any callable that judges responses.

    def verifier(problems, responses):  # as many of the one as of the other
        return [1.0 if response.strip() == problem.answer else 0.0 for problem, response in zip(problems, responses)]

It returns one judgment a response: a number from 0 to 1, or a dict of named numbers. Of a dict the entry `reward`
counts, or, where there is none, the sum of all; every named number becomes a metric. 1 is a right answer. A step's
responses are judged in several calls and processes, so a judgment may depend on its own problem and response alone.

It runs in worker processes of its own (pool.py), with the rights of the user: none of the limits for the graders of
this package are set there, because code that one has written oneself may well write files, start programs and ask
servers.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import math
import numbers
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from iiblpo_jax.common import own_code
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.rewards.exact import final_answer
from iiblpo_jax.rewards.math.boxes import BOXES, last_boxed
from iiblpo_jax.rewards.verifier import Job, Problem, Verifier

REWARD = "reward"  # the entry of a dict that counts
Function = Callable[[Sequence[Problem], Sequence[str]], Any]  # a judgment each: see `judged`
Parts = dict[str, float]
Recipe = tuple[Any, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class OneByOne:
    """A function of one problem and one response as a verifier; its time-out is that of one response."""

    function: Callable[[Problem, str], Any]

    def __call__(self, problems: Sequence[Problem], responses: Sequence[str]) -> list[Any]:
        return [self.function(problem, response) for problem, response in zip(problems, responses, strict=True)]


def one_by_one(function: Callable[[Problem, str], Any]) -> OneByOne:
    """A verifier out of a function of one problem and one response."""
    return OneByOne(function)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Origin:
    """Where a verifier can be had again in another process.

    Attributes:
      reference: `file.py:name`; key: the knob that it stands in.
      options: of a function that returns a task with the verifier; None = it is the verifier itself.
    """

    reference: str
    key: str
    options: Mapping[str, Any] | None = None

    def function(self) -> Function:
        """The verifier."""
        if self.options is None:
            return own_code.load(self.reference, key=self.key)
        return own_code.call(self.reference, {}, self.options, key=self.key).verifier.function


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Own(Verifier):
    """A callable as a verifier.

    Attributes:
      function: (problems, responses) -> judgments, see above.
      task: name of the task, by which a worker knows it.
      marker, closing: of the task: where a final answer begins and ends.
      origin: where a function that cannot be pickled (a lambda, a closure) can be had again; None = nowhere.
    """

    function: Function
    task: str
    marker: str
    closing: str = ""
    origin: Origin | None = None

    def grade(self, problem: Problem, response: str) -> Job:
        """A call with one response."""
        return self.call([problem], [response])

    def call(self, problems: Sequence[Problem], responses: Sequence[str]) -> Job:
        """A call with several."""
        return Job(self.task, (list(problems), list(responses)))

    @property
    def single(self) -> bool:
        """Whether every response is judged by a call of its own."""
        return isinstance(self.function, OneByOne)

    def answer(self, response: str) -> str | None:
        """What stands behind the last marker, up to the closing."""
        if self.marker in {f"{box}{{" for box in BOXES}:
            return last_boxed(response)
        found = final_answer(response, marker=self.marker)
        return found if found is None or not self.closing else found.partition(self.closing)[0].strip()

    def reads(self, gold: str) -> bool:
        """Always: what a gold answer may be is between the verifier and its data."""
        return True

    def recipe(self) -> Recipe:
        """What `made` makes the function of in another process.

        Raises:
          InputError: the function cannot be had there.
        """
        try:
            return "pickled", pickle.dumps(self.function), own_code.loaded_files()
        except Exception as error:  # whatever a user's object raises
            if self.origin is None:
                raise InputError(
                    f"task {self.task!r}: its verifier {self.function!r} cannot be taken into a worker process "
                    f"({str(error)[:120]}); define it at the top of a file, not in a function or a notebook"
                ) from None
            return "origin", self.origin


def made(recipe: Recipe) -> Callable[..., list[Any]]:
    """What a worker calls: the verifier of a recipe, its judgments checked (see `judged`); or, of a recipe `("made",
    "module:function", *arguments)`, what that function returns."""
    kind, *rest = recipe
    if kind == "made":
        module, _, name = rest[0].partition(":")
        return getattr(importlib.import_module(module), name)(*rest[1:])
    function = rest[0].function() if kind == "origin" else unpickled(*rest)
    return lambda problems, responses: judged(function, problems, responses)


def judged(function: Function, problems: Sequence[Problem], responses: Sequence[str]) -> list[Parts]:
    """The judgments of a call as dicts whose entry `reward` is the reward.

    Raises:
      ValueError: not one judgment a response, or one that is none.
    """
    found = function(problems, responses)
    if isinstance(found, str | Mapping) or not hasattr(found, "__len__"):
        raise ValueError(f"the verifier returned a {type(found).__name__}; return a list of {len(responses)} rewards")
    if len(found) != len(responses):
        raise ValueError(f"the verifier returned {len(found)} rewards for {len(responses)} responses")
    return [_parts(judgment) for judgment in found]


def _parts(judgment: Any) -> Parts:
    parts = judgment if isinstance(judgment, Mapping) else {REWARD: judgment}
    named = {str(name): _number(value, str(name)) for name, value in parts.items()}
    if not named:
        raise ValueError("the verifier returned a dict without numbers")
    named.setdefault(REWARD, math.fsum(named.values()))
    if not 0.0 <= named[REWARD] <= 1.0:
        raise ValueError(f"the verifier returned the reward {named[REWARD]:g}; scale rewards to 0..1, 1 = right")
    return named


def _number(value: Any, name: str) -> float:
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # a scalar of NumPy or torch
        value = value.item()
    if not isinstance(value, numbers.Real):
        raise ValueError(f"the verifier returned {str(value)[:60]!r} as {name}, a {type(value).__name__}; no number")
    if not math.isfinite(value):
        raise ValueError(f"the verifier returned {value} as {name}")
    return float(value)


def unpickled(pickled: bytes, files: Mapping[str, str]) -> Any:
    """What was pickled where the user's own `files` were loaded (own_code.loaded_files)."""
    return _Unpickler(pickled, files).load()


class _Unpickler(pickle.Unpickler):
    """Reads what `recipe` wrote, in a process that has yet to load the user's files: each when a name asks for it."""

    def __init__(self, pickled: bytes, files: Mapping[str, str]):
        super().__init__(io.BytesIO(pickled))
        self._files = files

    def find_class(self, module: str, name: str) -> Any:
        if module in self._files:
            own_code.load_file(self._files[module])
        return super().find_class(module, name)
