"""Reading and writing safetensors files one tensor at a time.

The safetensors library hands out whole copies of tensors and, when writing from numpy, copies the whole model first.
Here a tensor is a view of the memory-mapped file, and a file is written as its tensors arrive, so neither direction
needs host memory beyond the arrays the caller owns. bfloat16 is numpy's through ml_dtypes.

A file is somebody else's: every number of its header is checked against the size of the file before anything is
allocated, and the tensors must cover the data without gaps or overlaps, as the format says.
"""

import itertools
import json
import math
import pathlib
from collections.abc import Iterable, Mapping

import ml_dtypes
import numpy as np

from iiblpo_jax.common import json_input
from iiblpo_jax.common.errors import InputError

DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
PRODUCER = "iiblpo_jax"  # in the header of what we write, so that a later export may replace it
MAX_HEADER = 32 << 20  # bytes: 200 thousand tensors; the format allows three times as much, which takes GBs to parse
MAX_AXES = 8
MAX_NUMBER = 1 << 62


class SafetensorsFile:
    """The tensors of one file, by name, as read-only views of the mapped file."""

    def __init__(self, path: pathlib.Path):
        """Checks the whole header against the size of the file.

        Raises:
          InputError: not a safetensors file, truncated, or a tensor whose bytes do not fit its shape.
        """
        self.path = pathlib.Path(path)
        size = self.path.stat().st_size
        self._start, self._entries, self.metadata = _read_header(self.path, size)
        end = self._start + max((e["data_offsets"][1] for e in self._entries.values()), default=0)
        if end > size:
            raise InputError(f"{path} is truncated: {size} bytes of {end}; copy the file again")
        if end < size:
            raise InputError(f"{path} has {size - end} bytes beyond its last tensor; copy the file again")
        ranges = sorted(e["data_offsets"] for e in self._entries.values())
        if any(before[1] != after[0] for before, after in itertools.pairwise([[0, 0], *ranges])):
            raise InputError(f"{path} has tensors that overlap, or gaps between them; copy the file again")
        self._bytes = np.memmap(self.path, np.uint8, mode="r")

    def names(self) -> list[str]:
        """Names of the tensors."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, from the header."""
        return tuple(self._entries[name]["shape"])

    def tensor(self, name: str) -> np.ndarray:
        """A view of one tensor in its stored dtype.

        Raises:
          InputError: stored in anything but float32, float16 or bfloat16, or with the wrong number of bytes.
        """
        entry = self._entries[name]
        if entry["dtype"] not in DTYPES:
            raise InputError(
                f"tensor {name} in {self.path} is {entry['dtype']}; only F32, F16 and BF16 weights can be loaded"
            )
        dtype, (start, stop) = DTYPES[entry["dtype"]], entry["data_offsets"]
        if stop - start != math.prod(entry["shape"]) * dtype.itemsize:
            raise InputError(f"tensor {name} in {self.path} does not fill its shape; copy the file again")
        return self._bytes[self._start + start : self._start + stop].view(dtype).reshape(entry["shape"])


def _read_header(path: pathlib.Path, size: int) -> tuple[int, dict, dict]:
    """(first byte of the data, entries by name, metadata) of a file of `size` bytes."""
    with path.open("rb") as file:
        prefix = file.read(8)
        if prefix.startswith(b"version"):
            raise InputError(f"{path} is a Git LFS pointer, not the weights; run `git lfs pull` in its repository")
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or not 0 < length <= min(MAX_HEADER, size - 8):
            raise InputError(f"{path} is not a complete safetensors file; copy the file again")
        text = file.read(length)
    damaged = InputError(f"{path} has a damaged safetensors header; copy the file again")
    try:
        entries = json_input.parse(text, str(path), mend="copy the file again")
    except InputError as error:
        raise damaged from error
    metadata = entries.pop("__metadata__", {}) if isinstance(entries, dict) else None
    if not isinstance(metadata, dict) or not all(map(_well_formed, entries.values())):
        raise damaged
    return 8 + length, entries, metadata


def _well_formed(entry) -> bool:
    """A dtype, a shape, and a range of bytes, all within what a file can hold."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not (isinstance(shape, list) and len(shape) <= MAX_AXES and isinstance(offsets, list) and len(offsets) == 2):
        return False
    numbers = all(type(n) is int and 0 <= n < MAX_NUMBER for n in (*shape, *offsets))
    return numbers and offsets[0] <= offsets[1] and math.prod(shape) < MAX_NUMBER


def write_safetensors(
    path: pathlib.Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, tensors: Iterable[np.ndarray]
) -> None:
    """Writes one file; `tensors` yields arrays of `dtype` in the order of `shapes`, one alive at a time."""
    kind = next(name for name, known in DTYPES.items() if known == dtype)
    header: dict[str, dict] = {"__metadata__": {"format": "pt", "producer": PRODUCER}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, shape), tensor in zip(shapes.items(), tensors, strict=True):
            if tensor.shape != tuple(shape) or tensor.dtype != dtype:
                raise ValueError(f"{name}: {tensor.dtype}{tensor.shape} is not the {dtype}{shape} of the header")
            file.write(np.ascontiguousarray(tensor).view(np.uint8).data)
