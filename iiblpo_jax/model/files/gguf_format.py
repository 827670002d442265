"""The GGUF container: metadata and tensor table read here, quantised blocks undone by the package gguf.

That package's own reader makes several Python objects for every token of the vocabulary (150 MB for 49 k tokens), which
would break the promise about host memory; the container is simple enough to read directly.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little endian).

A file is somebody else's: every count and length is checked against the bytes that are left before anything is
allocated, so a header costs a small multiple of its own size whatever its numbers say.
"""

import dataclasses
import math
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from iiblpo_jax.common.errors import InputError

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
CHUNK = 1 << 20  # weights dequantised at once
MAX_AXES = 4  # ggml's own limit
MAX_ALIGNMENT = 1 << 16
MAX_SIZE = 1 << 40  # weights of a tensor


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """One line of the tensor table: shape in numpy order, ggml type number, offset into the data section in bytes."""

    shape: tuple[int, ...]
    kind: int
    offset: int


class GGUFContainer:
    """One GGUF file.

    Attributes:
      path: the file.
      metadata: every key; arrays as lists (of str) or numpy arrays (of numbers).
      tensors: the tensor table, by name.
    """

    def __init__(self, path: pathlib.Path):
        """Reads the header; InputError if it is no GGUF file, damaged, or truncated."""
        self.path = pathlib.Path(path)
        if self.path.stat().st_size < 24:
            raise InputError(f"{path} is not a complete GGUF file; copy the file again")
        self._bytes = np.memmap(self.path, np.uint8, mode="r")
        self._at = 0
        try:
            self._read_header()
        except (struct.error, IndexError, KeyError, ValueError) as error:
            raise InputError(f"{path} has a damaged GGUF header; copy the file again") from error

    def _read_header(self):
        if self._bytes[:4].tobytes() != b"GGUF":
            raise InputError(f"{self.path} is not a GGUF file; give a file that llama.cpp can read")
        self._at = 4
        version = self._scalar("I")
        if version not in (2, 3):
            raise InputError(f"{self.path} is GGUF version {version}; convert it to version 3")
        n_tensors, n_keys = self._scalar("Q"), self._scalar("Q")
        self.metadata: dict[str, Any] = {}
        for _ in range(n_keys):
            key = self._string()  # before the value: Python evaluates the right-hand side of an assignment first
            self.metadata[key] = self._value(self._scalar("I"))
        self.tensors = dict(self._tensor_info() for _ in range(n_tensors))
        if len(self.tensors) < n_tensors:
            raise InputError(f"{self.path} names a tensor twice; copy the file again")
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT:
            raise ValueError
        self._data = -(-self._at // alignment) * alignment

    def _claim(self, count: int) -> slice:
        """The next `count` bytes, which must be there."""
        if count > len(self._bytes) - self._at:
            raise IndexError
        self._at += count
        return slice(self._at - count, self._at)

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack("<" + code, self._bytes[self._claim(struct.calcsize("<" + code))].tobytes())
        return value

    def _string(self) -> str:
        return self._bytes[self._claim(self._scalar("Q"))].tobytes().decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        return self._array() if kind == ARRAY else self._scalar(SCALARS[kind])

    def _array(self) -> Any:
        kind, count = self._scalar("I"), self._scalar("Q")
        if kind == STRING:
            if 8 * count > len(self._bytes) - self._at:  # a string has at least its length
                raise IndexError
            return [self._string() for _ in range(count)]
        # Arrays of arrays are in the format and in no model; SCALARS does not have them.
        dtype = np.dtype("<" + SCALARS[kind])
        return self._bytes[self._claim(count * dtype.itemsize)].view(dtype).copy()

    def _tensor_info(self) -> tuple[str, TensorInfo]:
        name, axes = self._string(), self._scalar("I")
        if not 1 <= axes <= MAX_AXES:
            raise ValueError
        shape = tuple(reversed([self._scalar("Q") for _ in range(axes)]))
        if not 1 <= math.prod(shape) <= MAX_SIZE:
            raise ValueError
        return name, TensorInfo(shape, self._scalar("I"), self._scalar("Q"))

    def check(self) -> None:
        """That every tensor is all there, and that no two share bytes, before a caller allocates their weights.

        Raises:
          InputError: one that is not, or of a type that the package gguf does not know.
        """
        end, last = 0, None
        for name in sorted(self.tensors, key=lambda name: self.tensors[name].offset):
            start, row_bytes, n_rows, _ = self._layout(name)
            if start < end:
                raise InputError(f"tensors {last} and {name} in {self.path} overlap; copy the file again")
            end, last = start + n_rows * row_bytes, name

    def _layout(self, name: str) -> tuple[int, int, int, Any]:
        """(first byte, bytes of a row, rows, type) of a tensor that is all there."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        info = self.tensors[name]
        try:
            kind = GGMLQuantizationType(info.kind)
            block, block_bytes = GGML_QUANT_SIZES[kind]
        except (ValueError, KeyError) as error:
            raise InputError(f"tensor {name} in {self.path} has unknown type {info.kind}; update gguf") from error
        width = info.shape[-1]
        if width % block:
            raise InputError(f"tensor {name} in {self.path} has rows that are not whole blocks; copy the file again")
        start, row_bytes, n_rows = self._data + info.offset, width // block * block_bytes, math.prod(info.shape[:-1])
        if start + n_rows * row_bytes > len(self._bytes):
            raise InputError(f"{self.path} is truncated: tensor {name} is not all there; copy the file again")
        return start, row_bytes, n_rows, kind

    def chunks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """The float32 values of a tensor, flat, as (first index, values) chunks of whole rows.

        Raises:
          InputError: the tensor lies beyond the end of the file or is quantised in a way the package gguf cannot undo.
        """
        from gguf import dequantize

        start, row_bytes, n_rows, kind = self._layout(name)
        width = self.tensors[name].shape[-1]
        data = self._bytes[start : start + n_rows * row_bytes].reshape(n_rows, row_bytes)
        step = max(1, CHUNK // width)
        for row in range(0, n_rows, step):
            try:
                yield row * width, dequantize(np.array(data[row : row + step]), kind).reshape(-1)
            except NotImplementedError as error:
                raise InputError(f"tensor {name} in {self.path} is {kind.name}; convert it to Q8_0 or F16") from error

    def array(self, name: str) -> np.ndarray:
        """A whole tensor in float32; for the small ones."""
        return np.concatenate([values for _, values in self.chunks(name)]).reshape(self.tensors[name].shape)
