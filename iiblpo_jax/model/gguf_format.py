"""The GGUF container: metadata and tensor table read here, quantised blocks undone by the package gguf.

That package's own reader makes several Python objects for every token of the vocabulary (150 MB for 49 k tokens), which
would break the promise about host memory; the container is simple enough to read directly.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little endian).
"""

import dataclasses
import math
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from iiblpo_jax.errors import InputError

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
CHUNK = 1 << 20  # weights dequantised at once


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
        except (struct.error, IndexError, UnicodeDecodeError, KeyError, OverflowError, ValueError) as error:
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
        alignment = int(self.metadata.get("general.alignment", 32))
        self._data = -(-self._at // alignment) * alignment

    def _scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self._bytes, self._at)
        self._at += struct.calcsize("<" + code)
        return value

    def _string(self) -> str:
        length = self._scalar("Q")
        if self._at + length > len(self._bytes):
            raise IndexError
        text = self._bytes[self._at : self._at + length].tobytes()
        self._at += length
        return text.decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind != ARRAY:
            return self._scalar(SCALARS[kind])
        kind, count = self._scalar("I"), self._scalar("Q")
        if count > len(self._bytes):
            raise IndexError
        if kind not in SCALARS:
            return [self._value(kind) for _ in range(count)]
        dtype = np.dtype("<" + SCALARS[kind])
        values = self._bytes[self._at : self._at + count * dtype.itemsize].view(dtype).copy()
        self._at += count * dtype.itemsize
        return values

    def _tensor_info(self) -> tuple[str, TensorInfo]:
        name = self._string()
        dims = [self._scalar("Q") for _ in range(self._scalar("I"))]
        kind, offset = self._scalar("I"), self._scalar("Q")
        return name, TensorInfo(tuple(reversed(dims)), kind, offset)

    def chunks(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """The float32 values of a tensor, flat, as (first index, values) chunks of whole rows.

        Raises:
          InputError: the tensor lies beyond the end of the file or is quantised in a way the package gguf cannot undo.
        """
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

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
