"""An endless iterator whose position can be saved. Built on Grain."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Generic, TypeVar

import grain

from iiblpo_jax.common.errors import InputError

T = TypeVar("T")


class Endless(Generic[T]):
    """Iterates over an endless dataset; the position is that within a sequence that only the data decide.

    Args:
      dataset: what is iterated over, repeated.
      fingerprint: of everything that decides the sequence: what a saved position is a position in.
    """

    def __init__(self, dataset: grain.MapDataset, fingerprint: str):
        self._fingerprint = fingerprint
        # Everything is in memory already: a thread pool would only reorder work.
        self._iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))

    def __iter__(self) -> Endless[T]:
        return self

    def __next__(self) -> T:
        return next(self._iterator)

    def get_state(self) -> bytes:
        """The position, as JSON."""
        return json.dumps({"grain": self._iterator.get_state(), "data": self._fingerprint}).encode()

    def set_state(self, state: bytes) -> None:
        """Continues exactly where `get_state` was taken.

        Raises:
          InputError: the state was taken from other data.
        """
        content = json.loads(state)
        if content["data"] != self._fingerprint:
            raise InputError(
                "the checkpoint was written with other training data; resume with the same task, data.seed, "
                "data.recorded, offline.*, train.prompts_per_step, rollout.max_prompt and tokenizer, or start in a new "
                "workdir"
            )
        self._iterator.set_state(content["grain"])


def epochs(items: Sequence, *, seed: int, index: int = 0) -> grain.MapDataset:
    """The items over and over, every epoch shuffled anew; `index` tells datasets of one seed apart."""
    number = int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:4]) >> 1
    return grain.MapDataset.source(items).shuffle(seed=number).repeat()
