"""Two-number sums in plain text, `Q: 17 + 25 = ?\\nA:`: the task that a small pretrained model learns in minutes."""

from __future__ import annotations

import itertools
import random

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.task import Task
from iiblpo_jax.rewards.exact import Exact
from iiblpo_jax.rewards.verifier import Problem

NAME = "sums"
TEMPLATE = "Q: {question} = ?\nA:"
MOST = 1000  # operands: there are as many problems as pairs of them
MARKER = " "  # the response is the answer: its first integer counts


def make_sums(*, seed: int, low: int = 1, high: int = 49, heldout_size: int = 256) -> Task:
    """All ordered pairs of operands in low..high, cut into disjoint train and held-out sets.

    A sum and its mirror image (17 + 25, 25 + 17) fall on the same side, and the side does not depend on the seed,
    which only orders the training set.

    Raises:
      InputError: an empty range, or a held-out set that leaves nothing to train on.
    """
    if not 0 <= low <= high < low + MOST:
        raise InputError(f"sums with low={low}, high={high}; choose 0 <= low <= high, and at most {MOST} operands")
    pairs = list(itertools.combinations_with_replacement(range(low, high + 1), 2))
    count = 2 * len(pairs) - (high - low + 1)
    if not 0 < heldout_size < count:
        raise InputError(
            f"sums with heldout_size={heldout_size} leaves nothing to train on or hold out; use 1 to {count - 1}"
        )
    random.Random("sums/split").shuffle(pairs)
    ordered = [_orders(pair) for pair in pairs]
    heldout: list[Problem] = []
    while len(heldout) < heldout_size:
        heldout += ordered.pop()
    train = [problem for problems in ordered for problem in problems]
    if not train:
        raise InputError(f"sums with heldout_size={heldout_size} leaves no training problem; make it smaller")
    random.Random(f"sums/train/{seed}").shuffle(train)
    return Task(
        name=NAME,
        train=train,
        heldout=heldout[:heldout_size],
        verifier=Exact(marker=MARKER),
        cue=" ",
        marker=MARKER,
        template=TEMPLATE,
        hinted="Hint: {hint}\n{turn}",
    )


def _orders(pair: tuple[int, int]) -> list[Problem]:
    a, b = pair
    return [_problem(a, b)] if a == b else [_problem(a, b), _problem(b, a)]


def _problem(a: int, b: int) -> Problem:
    return Problem(id=f"{NAME}/{a}+{b}", question=f"{a} + {b}", answer=str(a + b), rationale=f" {a + b}", task=NAME)
