"""Preference pairs of a file: what was asked, the response that was preferred, and the one that was not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data import files

COLUMNS = ("prompt", "chosen", "rejected")
MAX_TEXT = 1 << 20  # characters of one text
MEND = "correct or remove that row"


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
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file of preference pairs; correct the path")
    if path.suffix not in files.SUFFIXES:
        raise InputError(f"{path} is none of {', '.join(files.SUFFIXES)}; convert it to one of them")
    pairs = tuple(_pair(place, row) for place, row in files.read_rows(path, columns=set(COLUMNS)))
    if not pairs:
        raise InputError(f"{path} holds no pairs; write one object of {', '.join(COLUMNS)} a line")
    return pairs


def _pair(place: str, row: dict[str, Any]) -> Pair:
    pair = Pair(*(_text(place, row, name) for name in COLUMNS))
    if pair.chosen == pair.rejected:
        raise InputError(f"{place}: chosen and rejected are the same text; {MEND}")
    return pair


def _text(place: str, row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        listed = ", ".join(sorted(row)) or "none"
        raise InputError(f"{place}: no column {name}; it has {listed}; write {', '.join(COLUMNS)}, or remove that row")
    if not isinstance(value, str):
        raise InputError(f"{place}: {name} is a {type(value).__name__} and no text; {MEND}")
    if not 0 < len(value) <= MAX_TEXT:
        raise InputError(f"{place}: {name} has {len(value)} characters, from 1 to {MAX_TEXT} can be read; {MEND}")
    return value
