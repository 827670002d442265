"""Chained sums of one-digit numbers, with the working written out: `6+5+3=` -> `6+5=11;11+3=14;#14`.

Small enough for a model of 0.2 M parameters, yet every wrong carry is a wrong answer. A character vocabulary of
`ALPHABET` plus the special tokens covers it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.heldout import SHARE, check_sizes, even_over, is_heldout, training_draws
from iiblpo_jax.data.task import SHORT_HINTED, Task
from iiblpo_jax.rewards.exact import Exact
from iiblpo_jax.rewards.verifier import Problem

ALPHABET = "0123456789+=;#"
NAME = "arithmetic"
MARKER = "#"
LONGEST = 40  # terms


def make_arithmetic(
    *, seed: int, k_min: int = 2, k_max: int = 4, train_size: int = 8192, heldout_size: int = 512
) -> Task:
    """Sums of `k_min` to `k_max` terms, the number of terms uniform.

    Whether a problem is held out is a hash of its text, so the two sets are disjoint for every seed. The training
    set is `train_size` draws (two-term sums repeat: there are only 100). The held-out set is the same for every
    seed and has no repeats; what the short sums cannot fill, the longer ones do, and it is shorter than
    `heldout_size` when there are not that many problems.

    Raises:
      InputError: the range of terms or a size is impossible.
    """
    if not 2 <= k_min <= k_max <= LONGEST:
        raise InputError(f"arithmetic with k_min={k_min}, k_max={k_max}; choose 2 <= k_min <= k_max <= {LONGEST}")
    check_sizes(NAME, train_size, heldout_size)
    draws = training_draws(random.Random(f"arithmetic/train/{seed}"), k_min, k_max, _terms, _held_out)
    pools = [_heldout_of(k, heldout_size) for k in range(k_min, k_max + 1)]
    train = [sum_problem(next(draws)) for _ in range(train_size)]
    return Task(
        name=NAME,
        train=train,
        heldout=[sum_problem(terms) for terms in even_over(pools, heldout_size)],
        verifier=Exact(marker=MARKER),
        cue=MARKER,
        marker=MARKER,
        hinted=SHORT_HINTED,
    )


def sum_problem(terms: Sequence[int], *, task: str = NAME) -> Problem:
    """The problem `a+b+...=` of a task, with its worked rationale."""
    text = "+".join(map(str, terms))
    steps, total = [], terms[0]
    for term in terms[1:]:
        steps.append(f"{total}+{term}={total + term};")
        total += term
    return Problem(
        id=f"{task}/{text}",
        question=text + "=",
        answer=str(total),
        rationale="".join(steps) + f"#{total}",
        task=task,
        metadata={"terms": len(terms)},
    )


def _terms(rng: random.Random, k: int) -> tuple[int, ...]:
    return tuple(rng.randrange(10) for _ in range(k))


def _held_out(terms: tuple[int, ...]) -> bool:
    return is_heldout("+".join(map(str, terms)) + "=")


def _heldout_of(k: int, size: int) -> list[tuple[int, ...]]:
    """Up to `size` distinct held-out sums of k terms, in a fixed random order."""
    rng = random.Random(f"arithmetic/heldout/{k}")
    # Long sums are far too many to list; a few thousand random ones hold enough held-out problems.
    count, wanted = 10**k, 4 * SHARE * size
    if count < 2**63:
        picks = rng.sample(range(count), min(count, wanted))
    else:  # more than `sample` can number; among so many two that are equal do not occur, and would be dropped
        picks = list(dict.fromkeys(rng.randrange(count) for _ in range(wanted)))
    sums = [tuple(int(digit) for digit in f"{pick:0{k}d}") for pick in picks]
    return [terms for terms in sums if _held_out(terms)][:size]
