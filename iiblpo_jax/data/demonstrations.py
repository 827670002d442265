"""Demonstrations of a file: what was asked, and the response to be learnt."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from iiblpo_jax.data.pairs import read_texts

COLUMNS = ("prompt", "response")


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """A response to a prompt, as text; neither is empty. `place` names the row."""

    place: str
    prompt: str
    response: str


def read_demonstrations(path: str | Path) -> tuple[Demonstration, ...]:
    """The demonstrations of a file, one object of `prompt` and `response` a row, in its order.

    Args:
      path: a .jsonl, .json or .parquet file; further columns are passed over.

    Raises:
      InputError: no such file, no rows, a column that is missing, empty or no text.
    """
    return tuple(Demonstration(*texts) for texts in read_texts(path, COLUMNS, "demonstrations"))
