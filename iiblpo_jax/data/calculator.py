"""Chained sums that are worked out with a calculator: `26+5+31=` -> `26+5=` `31;` `31+31=` `62;` `#62`.

The text is that of `arithmetic`, whose shipped model speaks it; here what stands behind every `=` is not the policy's
but the calculator's (environments/calculator.py). So it has to ask for the right sums, and may be given numbers that
are longer than a small model can add.
"""

from __future__ import annotations

import random

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.arithmetic import sum_problem
from iiblpo_jax.data.heldout import check_sizes, even_over, is_heldout, training_draws
from iiblpo_jax.data.task import Task
from iiblpo_jax.environments.calculator import Calculator
from iiblpo_jax.rewards.exact import Exact
from iiblpo_jax.rewards.verifier import Problem

NAME = "calculator"
MARKER = "#"
ATTEMPTS = 32  # draws a held-out problem, of which one in eight is held out


def make_calculator(
    *, seed: int, k_min: int = 2, k_max: int = 4, digits: int = 1, train_size: int = 8192, heldout_size: int = 512
) -> Task:
    """Sums of `k_min` to `k_max` numbers of at most `digits` digits; k uniform, and the numbers too.

    Whether a problem is held out is a hash of its text, so the two sets are disjoint for every seed. The held-out set
    is the same for every seed and has no repeats.

    Raises:
      InputError: the range of terms, the digits or a size is impossible.
    """
    if not 2 <= k_min <= k_max <= 18 or not 1 <= digits <= 9:
        raise InputError(
            f"calculator with k_min={k_min}, k_max={k_max}, digits={digits}; choose 2 <= k_min <= k_max <= 18 and "
            "1 <= digits <= 9"
        )
    check_sizes(NAME, train_size, heldout_size)

    def draw(rng: random.Random, k: int) -> Problem:
        return sum_problem([rng.randrange(10**digits) for _ in range(k)], task=NAME)

    def held_out(problem: Problem) -> bool:
        return is_heldout(problem.question)

    draws = training_draws(random.Random(f"{NAME}/train/{seed}"), k_min, k_max, draw, held_out)
    pools = [_heldout_of(k, heldout_size, draw, held_out) for k in range(k_min, k_max + 1)]
    return Task(
        name=NAME,
        train=[next(draws) for _ in range(train_size)],
        heldout=even_over(pools, heldout_size),
        verifier=Exact(marker=MARKER),
        cue=MARKER,
        marker=MARKER,
        environment=Calculator(),
    )


def _heldout_of(k: int, size: int, draw, held_out) -> list[Problem]:
    rng = random.Random(f"{NAME}/heldout/{k}")
    drawn = (draw(rng, k) for _ in range(ATTEMPTS * size))
    return list({problem.id: problem for problem in drawn if held_out(problem)}.values())[:size]
