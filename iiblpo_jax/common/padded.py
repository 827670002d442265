"""Rows of different lengths as arrays: padded on the right, joined without gaps."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Padded(NamedTuple):
    """N right-padded rows of W columns, and how many of each row's columns count."""

    x_NW: jax.Array
    length_N: jax.Array

    @property
    def width(self) -> int:
        """W."""
        return self.x_NW.shape[1]

    def repeat(self, times: int) -> "Padded":
        """Every row `times` times in a row: what each trajectory of a prompt has of its prompt."""
        return Padded(jnp.repeat(self.x_NW, times, axis=0), jnp.repeat(self.length_N, times, axis=0))


def join(left_NA: jax.Array, left_len_N: jax.Array, right_NB: jax.Array, right_len_N: jax.Array) -> jax.Array:
    """Concatenates right-padded rows without a gap: [N, A+B], zeros after left_len + right_len."""
    width = left_NA.shape[1] + right_NB.shape[1]
    index_NC = jnp.arange(width)[None] - left_len_N[:, None]
    left_NC = jnp.pad(left_NA, [(0, 0), (0, right_NB.shape[1])])
    right_NC = jnp.take_along_axis(right_NB, jnp.clip(index_NC, 0, right_NB.shape[1] - 1), axis=1)
    tail_NC = jnp.where(index_NC < right_len_N[:, None], right_NC, 0)
    return jnp.where(index_NC < 0, left_NC, tail_NC)


def pad_rows(rows: Sequence[Sequence[int] | np.ndarray], width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(int32 [N, width] right padded with 0, int32 [N] lengths); width None = that of the longest row."""
    lengths = np.asarray([len(row) for row in rows], np.int32)
    padded = np.zeros((len(rows), lengths.max() if width is None else width), np.int32)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    return padded, lengths


def join_rows(pieces: Sequence[tuple[jax.Array, jax.Array]]) -> tuple[jax.Array, jax.Array]:
    """Concatenates right-padded pieces row by row: [(x_NW, len_N), ...] -> (rows_NC, len_N), C = sum of the widths."""
    (rows_NC, len_N), *rest = pieces
    for x_NW, x_len_N in rest:
        rows_NC, len_N = join(rows_NC, len_N, x_NW, x_len_N), len_N + x_len_N
    return rows_NC, len_N
