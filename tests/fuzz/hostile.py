"""Two thousand answers that mean harm, the same ones every time. None of them is right.

`attacks(n)` yields the first n of an endless, seeded sequence that cycles through the families below, so a short
sample has some of everything. Every attack carries the gold answer it must not earn.
"""

import itertools
import random
from collections.abc import Iterator
from typing import NamedTuple

from hostile_math import calculus, code, evaluated, macros, nesting, powers, soup
from hostile_text import boxes, decimals, hedges, megabytes, texts, unicode

COUNT = 2000
GYM = (
    "countdown",
    "puzzle24",
    "simple_integration",
    "polynomial_multiplication",
    "n_queens",
    "binary_matrix",
    "spiral_matrix",
    "string_insertion",
    "chain_sum",
    "number_sorting",
    "game_of_life",
    "propositional_logic",
)


class Attack(NamedTuple):
    """One answer: the family it is of, its verifier (math, exact, or gym:NAME), a gold answer, the response."""

    family: str
    verifier: str
    gold: str
    response: str


MATH = (powers, nesting, megabytes, unicode, hedges, texts, decimals, macros, calculus, code, soup, boxes)


def attacks(n: int = COUNT) -> Iterator[Attack]:
    """The first `n` attacks: of every ten, seven against math-verify, one exact match, two reasoning-gym."""
    rng = random.Random(7919)
    makers = {
        "math": itertools.cycle(MATH),
        "exact": itertools.cycle(MATH),
        "gym": itertools.cycle((*MATH, evaluated, evaluated, evaluated)),
    }
    names = itertools.cycle(GYM)
    for number in range(n):
        verifier = "exact" if number % 10 == 9 else "gym" if number % 10 in (3, 6) else "math"
        family = next(makers[verifier])
        gold, body = family(rng)
        if verifier == "math":
            response = body if family is boxes else f"The answer is \\boxed{{{body}}}."
        elif verifier == "exact":
            response = f"{body} # {body}"
        else:
            verifier, response = f"gym:{next(names)}", f"<answer>{body}</answer>"
        yield Attack(family.__name__, verifier, gold, response)
