"""Preference pairs of a file: what was asked, the response that was preferred, and the one that was not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data import files

COLUMNS = ("prompt", "chosen", "rejected")
MAX_TEXT = 1 << 20  # characters of one text
MEND = "correct or remove that row"

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two responses to one prompt, as text.

    Attributes:
      prompt: what was asked, as it is: no template is put around it.
      chosen, rejected: what followed it; they differ, and neither is empty.
    """

    prompt: str
    chosen: str
    rejected: str


def read_pairs(path: str | Path) -> tuple[Pair, ...]:
    """The pairs of a file, one object of `prompt`, `chosen` and `rejected` a row, in its order.

    Args:
      path: a .jsonl, .json or .parquet file; further columns are passed over.

    Raises:
      InputError: no such file, no rows, a column that is missing, empty or no text, or two equal responses.
    """
    return tuple(_pair(place, *texts) for place, *texts in read_texts(path, COLUMNS, "preference pairs"))


def _pair(place: str, prompt: str, chosen: str, rejected: str) -> Pair:
    if chosen == rejected:
        raise InputError(f"{place}: chosen and rejected are the same text; {MEND}")
    return Pair(prompt, chosen, rejected)


def right_and_wrong(items: Sequence[T], right: Iterable[bool]) -> list[tuple[T, T]]:
    """(right, wrong) pairs of what was said to one prompt: the first of either kind, the second, and so on."""
    kinds = {True: [], False: []}
    for item, is_right in zip(items, right, strict=True):
        kinds[bool(is_right)].append(item)
    return list(zip(kinds[True], kinds[False], strict=False))


def read_texts(path: str | Path, columns: tuple[str, ...], what: str) -> list[tuple[str, ...]]:
    """(place, text of each column) of every row of a file that is all texts.

    Args:
      path: a .jsonl, .json or .parquet file; further columns are passed over.
      columns: their names.
      what: the rows are, in the messages.

    Raises:
      InputError: no such file, no rows, a column that is missing, empty or no text.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file of {what}; correct the path")
    if path.suffix not in files.SUFFIXES:
        raise InputError(f"{path} is none of {', '.join(files.SUFFIXES)}; convert it to one of them")
    rows = files.read_rows(path, columns=set(columns))
    texts = [(place, *(_text(place, row, name, columns) for name in columns)) for place, row in rows]
    if not texts:
        raise InputError(f"{path} holds no {what.split()[-1]}; write one object of {', '.join(columns)} a line")
    return texts


def _text(place: str, row: dict[str, Any], name: str, columns: tuple[str, ...]) -> str:
    value = row.get(name)
    if value is None:
        listed = ", ".join(sorted(row)) or "none"
        raise InputError(f"{place}: no column {name}; it has {listed}; write {', '.join(columns)}, or remove that row")
    if not isinstance(value, str):
        raise InputError(f"{place}: {name} is a {type(value).__name__} and no text; {MEND}")
    if not 0 < len(value) <= MAX_TEXT:
        raise InputError(f"{place}: {name} has {len(value)} characters, from 1 to {MAX_TEXT} can be read; {MEND}")
    return value
