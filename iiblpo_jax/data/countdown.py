"""Reach a target with one-digit numbers, the working written out: `3,9,4>8:` -> `9-4=5;5+3=8;#8`.

Every number is used exactly once: the first step combines two of them, each later one goes on with the result, which
may be negative. Order and signs are free, so a problem has many solutions, and far more attempts that miss.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data import heldout
from iiblpo_jax.data.task import SHORT_HINTED, Task
from iiblpo_jax.rewards.countdown import MARKER, Countdown, plan
from iiblpo_jax.rewards.verifier import Problem

ALPHABET = "0123456789,>:+-=;#"
NAME = "countdown"
TARGETS = range(36)


def make_countdown(
    *, seed: int, k_min: int = 3, k_max: int = 5, train_size: int = 8192, heldout_size: int = 512
) -> Task:
    """Problems of `k_min` to `k_max` numbers from 1 to 9, how many uniform, with a target in `TARGETS`.

    The target is what a random order with random signs gives, so every problem can be solved. Whether it is held out
    is a hash of its numbers, sorted, and its target: the two sets share no problem in any order, for every seed. The
    training set is `train_size` draws and repeats small problems. The held-out set is the same for every seed and
    has no repeats; what the small problems cannot fill, the larger ones do.

    Raises:
      InputError: the range of numbers or a size is impossible.
    """
    if not 2 <= k_min <= k_max <= 9:
        raise InputError(f"countdown with k_min={k_min}, k_max={k_max}; choose 2 <= k_min <= k_max <= 9")
    heldout.check_sizes(NAME, train_size, heldout_size)
    draws = heldout.training_draws(random.Random(f"countdown/train/{seed}"), k_min, k_max, _draw, _held_out)
    pools = [_heldout_of(k, heldout_size) for k in range(k_min, k_max + 1)]
    return Task(
        name=NAME,
        train=[next(draws) for _ in range(train_size)],
        heldout=heldout.even_over(pools, heldout_size),
        verifier=Countdown(),
        cue=MARKER,
        marker=MARKER,
        hinted=SHORT_HINTED,
        plan=plan,
    )


def chain(signed: Sequence[int]) -> tuple[str, int]:
    """A worked chain and its value: `(9, -4, 3)` -> `9-4=5;5+3=8;#8`, 8. The first number is positive."""
    steps, value = [], signed[0]
    for number in signed[1:]:
        steps.append(f"{value}{number:+d}={value + number};")
        value += number
    return "".join(steps) + f"#{value}", value


def random_signs(rng: random.Random, numbers: Sequence[int]) -> list[int]:
    """The numbers in a random order with random signs, the first one positive."""
    first, *others = rng.sample(numbers, len(numbers))
    return [first, *(rng.choice((1, -1)) * number for number in others)]


def canonical(numbers: Sequence[int], target: int) -> str:
    """The name that a problem has in whatever order its numbers are listed."""
    return f"{','.join(map(str, sorted(numbers)))}>{target}"


def is_heldout(numbers: Sequence[int], target: int) -> bool:
    """True for the share of problems that training never sees; a function of the canonical name alone."""
    return heldout.is_heldout(canonical(numbers, target))


def _draw(rng: random.Random, k: int) -> Problem:
    """A random problem of k numbers."""
    while True:
        numbers = [rng.randint(1, 9) for _ in range(k)]
        rationale, target = chain(random_signs(rng, numbers))
        if target in TARGETS:
            break
    question = f"{','.join(map(str, numbers))}>{target}:"
    return Problem(
        id=f"{NAME}/{question[:-1]}",
        question=question,
        answer=str(target),
        rationale=rationale,
        task=NAME,
        metadata={"numbers": numbers},
    )


def _held_out(problem: Problem) -> bool:
    return is_heldout(problem.metadata["numbers"], int(problem.answer))


def _heldout_of(k: int, size: int) -> list[Problem]:
    """Up to `size` distinct held-out problems of k numbers, in a fixed random order."""
    rng = random.Random(f"countdown/heldout/{k}")
    found = {}
    for _ in range(4 * heldout.SHARE * size):  # some are drawn again and again, others may not turn up
        problem = _draw(rng, k)
        if _held_out(problem):
            found.setdefault(canonical(problem.metadata["numbers"], int(problem.answer)), problem)
    return list(found.values())[:size]
