"""A knob: its value, what it means and which values it may have, in one place."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import math
import numbers
import operator
import re
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from iiblpo_jax.common.errors import InputError

KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    tuple: "a list",
    dict: "a dict such as {'name': 1}",
}
LISTS = {int: "a list such as 1,2", str: "a list such as 'a','b'"}
SHOWN = 80  # characters of a wrong value in a message


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knob:
    """One setting. Make it with `knob`.

    Attributes:
      default: its value until somebody sets it; None where the value depends on another knob.
      doc: what it does, and what its values mean.
      unit: of the number.
      kind: int, float, bool, str, tuple or dict; numbers, texts and lists of a config keep their kind.
      of: kind of the entries of a tuple.
      choices: the only values there are.
      at_least, above, at_most, below: the range of a number, or of the entries of a tuple.
      also: values beside the range.
      pattern, wanted: a regular expression that a text must match, and what it stands for.
    """

    default: Any
    doc: str
    unit: str = ""
    kind: type
    of: type | None = None
    choices: tuple = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    also: tuple = ()
    pattern: str = ""
    wanted: str = ""

    def fresh(self) -> Any:
        """The default as a ConfigDict holds it."""
        if self.default is None:
            return placeholder(self.kind)
        return ConfigDict(type_safe=False) if self.kind is dict else self.default

    def restored(self, value: Any) -> Any:
        """A value out of a JSON file as a ConfigDict holds it: tuples for lists, numbers for "inf"."""
        if self.kind is float and value in ("inf", "-inf", "nan"):
            return float(value)
        if self.kind is float and type(value) is int:
            return float(value) if abs(value) < 2**1000 else math.inf
        return ConfigDict(tupled(value)) if self.kind is dict and isinstance(value, dict) else tupled(value)

    def parse(self, text: str) -> Any:
        """What a word of the command line stands for, of the knob's kind; its range is a matter of `mistake`.

        Lists are written 1,2 or (1,2), texts in them with or without quotes; dicts as in Python.

        Raises:
          ValueError: it is of another kind.
        """
        if self.default is None and text == "None":
            return None
        value = _parse(text, self.kind, self.of)
        fits = self.is_kind(value) or value != value  # NaN is refused with its range
        if not fits or (self.kind is dict and not all(isinstance(name, str) for name in value)):
            raise ValueError(text)
        return value

    @property
    def range(self) -> str:
        """The values there are, in words; empty where any value of the kind will do."""
        if self.choices:
            return f"one of {', '.join(str(choice) or repr(choice) for choice in self.choices)}"
        if self.wanted:
            return self.wanted
        words = self._bounds()
        return " or ".join([f"{words},", *map(str, self.also)]) if self.also else words

    def mistake(self, value: Any) -> str:
        """What to use instead of a value that the knob may not have; empty for the others. NaN is no value."""
        if value is None and self.default is None:
            return ""
        if self.choices:
            return "" if isinstance(value, str) and value in self.choices else f"use {self.range}"
        if not self.is_kind(value):
            return f"use {self.wanted_kind}"
        fits = re.fullmatch(self.pattern, str(value)) if self.pattern else self._in_range(value)
        return "" if fits else f"use {self.range}"

    def line(self, key: str, value: Any) -> str:
        """The whole message about a wrong value of the knob `key`: the value and the mend; empty if it is right."""
        mend = self.mistake(value)
        return f"{key} = {shown(value)}{nearest(str(value), self.choices)}; {mend}" if mend else ""

    def check(self, key: str, value: Any) -> None:
        """Raises InputError where the knob `key` may not have this value."""
        if line := self.line(key, value):
            raise InputError(line)

    @property
    def wanted_kind(self) -> str:
        """Kind and range in words: `a whole number, 1 or more`."""
        kind = LISTS.get(self.of, KINDS[self.kind])
        if self.choices or self.range.startswith(kind):
            return self.range
        return ", ".join(filter(None, (kind, f"each {self.range}" if self.of and self.range else self.range)))

    def _bounds(self) -> str:
        low = self.at_least if self.above is None else self.above
        high = self.at_most if self.below is None else self.below
        if low is None:
            return ""
        if high is None:
            return f"{low} or more" if self.above is None else f"a number above {low}"
        first = f"from {low} to" if self.above is None else f"above {low} and"
        last = "below" if self.below is not None else "at most" if self.above is not None else ""
        return " ".join(f"a number {first} {last} {high}".split())

    def _in_range(self, value: Any) -> bool:
        """Of a value of the right kind; texts and dicts have no range."""
        if self.kind is tuple:
            return all(map(self._within, value))
        return self.kind not in (int, float) or self._within(value)

    def _within(self, number: float) -> bool:
        bounds = (
            (self.at_least, operator.ge),
            (self.above, operator.gt),
            (self.at_most, operator.le),
            (self.below, operator.lt),
        )
        return number in self.also or all(bound is None or holds(number, bound) for bound, holds in bounds)

    def is_kind(self, value: Any) -> bool:
        """Whether a value is of the knob's kind, in its range or not."""
        if value is None:
            return self.default is None
        if self.kind is tuple:
            return isinstance(value, tuple | list) and all(is_of(entry, self.of) for entry in value)
        return is_of(value, self.kind)


def knob(default: Any, doc: str, **described: Any) -> Knob:
    """A Knob whose kind is that of its default, unless `kind` says otherwise."""
    described.setdefault("kind", type(default))
    return Knob(default=default, doc=doc, **described)


def tupled(value: Any) -> Any:
    """JSON with tuples for lists, at every depth."""
    if isinstance(value, dict):
        return {key: tupled(item) for key, item in value.items()}
    return tuple(map(tupled, value)) if isinstance(value, list) else value


def shown(value: Any) -> str:
    """A wrong value as a message shows it: cut where it is long."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def literal(text: str) -> Any:
    """A Python literal, or the text itself where it is none; lists become tuples."""
    try:
        return tupled(ast.literal_eval(text.capitalize() if text in ("true", "false") else text))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return text


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """` (did you mean X?)` for the known name nearest to a wrong one; empty where none is near."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" (did you mean {near[0]}?)" if near else ""


def _parse(text: str, kind: type, of: type | None) -> Any:
    if kind is bool:
        return {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}.get(text.lower())
    if kind is not tuple:
        return literal(text) if kind is dict else kind(text)
    value = literal(text)
    value = value if isinstance(value, tuple) else (value,)
    if value == (text,) or (of is str and not all(isinstance(entry, str) for entry in value)):  # names without quotes
        value = tuple(filter(None, map(str.strip, text.strip("()[]").split(","))))
    return value


def is_of(value: Any, kind: type | None) -> bool:
    """Whether a value is of a kind: True is no number, 2.0 no whole one, and NaN nothing at all."""
    if kind in (int, float):
        wanted = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, wanted) and not isinstance(value, bool) and not math.isnan(value)
    return isinstance(value, ConfigDict | dict) if kind is dict else kind is None or isinstance(value, kind)
