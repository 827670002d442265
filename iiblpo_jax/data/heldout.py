"""Training and held-out sets of tasks that are drawn at random: disjoint by text, for every seed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from typing import TypeVar

from iiblpo_jax.common.errors import InputError

SHARE = 8  # one problem in eight is held out
MOST = {"train_size": 10_000_000, "heldout_size": 100_000}  # problems that a generator makes: they lie in memory

Draw = TypeVar("Draw")


def check_sizes(name: str, train_size: int, heldout_size: int) -> None:
    """Raises InputError where a generated task is asked for no problems, or for more than memory is meant for."""
    for option, size in (("train_size", train_size), ("heldout_size", heldout_size)):
        if not 1 <= size <= MOST[option]:
            raise InputError(f"{name} with {option}={size}; use a whole number from 1 to {MOST[option]}")


def is_heldout(text: str) -> bool:
    """True for the share of problems that training never sees; a function of the text that names them alone."""
    return hashlib.sha256(text.encode()).digest()[0] % SHARE == 0


def training_draws(
    rng: random.Random,
    k_min: int,
    k_max: int,
    draw: Callable[[random.Random, int], Draw],
    held_out: Callable[[Draw], bool],
) -> Iterator[Draw]:
    """Endless draws of uniform size k that are not held out: redrawn at the same k, so that the mix stays uniform."""
    while True:
        k = rng.randint(k_min, k_max)
        drawn = draw(rng, k)
        while held_out(drawn):
            drawn = draw(rng, k)
        yield drawn


def even_over(pools: list[list[Draw]], size: int) -> list[Draw]:
    """Up to `size` entries from the ends of the pools in turns, until the small ones run out; empties the pools."""
    chosen = []
    while len(chosen) < size and any(pools):
        for pool in pools:
            if pool and len(chosen) < size:
                chosen.append(pool.pop())
    return chosen
