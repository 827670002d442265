"""Rows of local dataset files: parquet, JSON Lines, JSON. Nothing here touches the network.

A file is somebody else's: rows are read one at a time and none may be larger than MAX_ROW, so a file of any size costs
no more memory than the problems it holds. Symbolic links below the directory are followed, as the cache of Hugging Face
asks for; a file whose name is not of a known format is never opened.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from iiblpo_jax.common import json_input
from iiblpo_jax.common.errors import InputError

SUFFIXES = (".parquet", ".jsonl", ".json")
MAX_ROW = 16 << 20  # bytes; the longest row in the datasets of rows.py has a few ten thousand
MAX_JSON = 1 << 30  # bytes of a .json file, which can only be read whole
BATCH_ROWS = 1024  # rows of a parquet file that are decoded at once
# What the libraries of Hugging Face put beside rows to describe them.
DESCRIPTIONS = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"}
HELDOUT_WORDS = {"test", "validation", "valid", "val", "eval", "dev", "heldout"}


def dataset_files(task: str, data_dir: str | Path | None, *, pattern: str | None = None) -> dict[str, list[Path]]:
    """The files of a dataset, sorted: {"train": [...], "heldout": [...]}.

    `data_dir` is one file, or a directory that is searched recursively. A file is held-out when a word of its path
    below `data_dir` says so (test, validation, val, eval, dev), else it is for training.

    Args:
      task: the task's name, for the messages.
      data_dir: file or directory; None and the empty string are a directory that is not set.
      pattern: glob below the directory that selects among its files, e.g. `OE_TO_maths_en_COMP/*.parquet`.

    Raises:
      InputError: no data_dir, nothing there, or no file of a known format.
    """
    if not data_dir:
        raise InputError(f"task {task!r} reads local files; set task.data_dir to a directory or file that holds them")
    root = Path(data_dir)
    if not root.exists():
        raise InputError(f"task {task!r}: {root} does not exist; download the dataset there or correct task.data_dir")
    if root.is_file():
        if root.suffix not in SUFFIXES:
            raise InputError(f"task {task!r}: {root} is none of {', '.join(SUFFIXES)}; convert it to one of them")
        return {_split(Path(root.name)): [root], _other(_split(Path(root.name))): []}
    found = sorted(path for path in root.glob(pattern or "**/*") if _has_rows(path) and path.is_file())
    if not found:
        wanted = pattern or ", ".join("*" + suffix for suffix in SUFFIXES)
        raise InputError(f"task {task!r}: no {wanted} under {root}; put the dataset's files there")
    files: dict[str, list[Path]] = {"train": [], "heldout": []}
    for path in found:
        files[_split(path.relative_to(root))].append(path)
    return files


def read_rows(path: Path, *, columns: set[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place, row) where place reads `train.jsonl row 17` (1-based) and the row's keys are lower case.

    Args:
      path: a parquet, JSON Lines or JSON file (a list of objects, or one object).
      columns: lower-case names worth reading; parquet columns outside it are not decoded and read None.

    Raises:
      InputError: a file that cannot be read as what its name says, or a row that is not an object.
    """
    reader = {".parquet": _parquet, ".jsonl": _json_lines, ".json": _json}[path.suffix]
    for number, row in reader(path, columns):
        place = f"{path} row {number}"
        if not isinstance(row, dict):
            raise InputError(f"{place} is not an object with named fields; write one JSON object a row")
        yield place, {str(key).lower(): value for key, value in row.items()}


def _has_rows(path: Path) -> bool:
    """A file of a known format, and neither a description of the others nor hidden."""
    return path.suffix in SUFFIXES and path.name not in DESCRIPTIONS and not path.name.startswith(".")


def _split(relative: Path) -> str:
    words = set(re.split(r"[^a-z]+", str(relative.with_suffix("")).lower()))
    return "heldout" if words & HELDOUT_WORDS else "train"


def _other(split: str) -> str:
    return "heldout" if split == "train" else "train"


def _parquet(path: Path, columns: set[str] | None) -> Iterator[tuple[int, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        _check_size(path, file.metadata)
        every = file.schema_arrow.names
        names = [name for name in every if columns is None or name.lower() in columns]
        unread = dict.fromkeys(every)  # for messages that say which columns there are
        batches = file.iter_batches(batch_size=BATCH_ROWS, columns=names or None)
        yield from enumerate((unread | row for batch in batches for row in batch.to_pylist()), 1)
    except (pyarrow.ArrowException, MemoryError, OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(f"{path} is not a readable parquet file ({_line(error)}); download it again") from error


def _check_size(path: Path, metadata: Any) -> None:
    """InputError if a row group's rows would be larger than any row can be, which is how a small file explodes."""
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        if not 0 <= group.total_byte_size <= max(1, group.num_rows) * MAX_ROW:
            raise InputError(f"{path}: {group.num_rows} rows of {group.total_byte_size} bytes; download it again")


def _json_lines(path: Path, columns: set[str] | None) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as lines:
        for number in itertools.count(1):
            line = lines.readline(MAX_ROW + 1)
            if not line:
                return
            if len(line) > MAX_ROW:
                raise InputError(f"{path} row {number} is longer than {MAX_ROW} bytes; correct or remove the line")
            if line.strip():
                yield number, json_input.parse(line, f"{path} row {number}", mend="correct or remove the line")


def _json(path: Path, columns: set[str] | None) -> Iterator[tuple[int, Any]]:
    content = json_input.load(path, mend="JSON Lines belong in a .jsonl file", limit=MAX_JSON)
    yield from enumerate(content if isinstance(content, list) else [content], 1)


def _line(error: Exception) -> str:
    return str(error).splitlines()[0][:120] if str(error) else type(error).__name__
