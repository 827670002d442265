"""JSON on disk: what a run writes and reads line by line."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from iiblpo_jax.common.errors import InputError


def plain(value: Any) -> Any:
    """A value as JSON has it: arrays and their scalars become lists, numbers and booleans; NaN and infinities null."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "dtype"):  # NumPy or JAX; float32 through its shortest decimal, so 0.1 reads 0.1
        value = np.asarray(value)
        if value.ndim:
            return [plain(item) for item in value]
        value = float(str(value)) if value.dtype.kind in "fV" else value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_atomic(path: Path, text: str) -> None:
    """Replaces a file in one step: a reader, or a run killed at any moment, finds the old or the new text whole."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def read_jsonl(path: Path) -> Iterator[dict]:
    """The objects of a JSONL file. An unfinished last line (a killed run) is skipped.

    Raises:
        InputError: any other line that is not a JSON object.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except json.JSONDecodeError as error:
            if number == len(lines):
                return
            raise InputError(f"{path}:{number} is not JSON ({error.msg}); delete the line") from error
        if isinstance(row, dict):
            yield row
