"""reasoning-gym 0.1.25 has scorers that pay one and the same answer to (nearly) every question: what replaces them.

    game_of_life_halting   compares bool("True") with bool("False"): any answer is right
    coin_flip              pays the share of digits that agree, and "0" agrees with all of "0.3125" that it has
    puzzle24               any four numbers in range will do: 6+6+6+6 solves every puzzle

Found by trying gold answers of other questions, parts of them and short texts on every task; those that merely give
partial credit for what is nearly right are left as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

PROBABILITY = re.compile(r"\d{1,9}(/\d{1,9})?|\d{0,9}\.\d{1,40}|\d{1,9}(\.\d{1,40})?[eE]-\d{1,2}")
NUMBER = re.compile(r"\d+")
TOLERANCE = Fraction(1, 10_000)  # the package's own
RELATIVE = Fraction(1, 100)  # and never more than this part of the probability


def halting(answer: str, entry: dict[str, Any]) -> float | None:
    """1.0 for the word that is the gold answer."""
    return float(answer.strip().lower() == entry["answer"].strip().lower())


def coin_flip(answer: str, entry: dict[str, Any]) -> float | None:
    """1.0 for a number or fraction within the tolerances of the exact probability; there is no partial credit."""
    text = answer.strip()
    if not PROBABILITY.fullmatch(text):
        return 0.0
    exact = Fraction(entry["metadata"]["rational"]["numerator"], entry["metadata"]["rational"]["denominator"])
    try:
        return float(abs(Fraction(text) - exact) <= min(TOLERANCE, RELATIVE * exact))
    except ZeroDivisionError:
        return 0.0


def puzzle24(answer: str, entry: dict[str, Any]) -> float | None:
    """0.0 unless the numbers of the puzzle are used, each once; the rest is for the package to judge."""
    used = sorted(map(int, NUMBER.findall(answer[:200])))
    return None if used == sorted(entry["metadata"]["numbers"]) else 0.0


# (answer, entry) -> score, or None where the package's scorer decides.
REPAIRS: dict[str, Callable[[str, dict[str, Any]], float | None]] = {
    "game_of_life_halting": halting,
    "coin_flip": coin_flip,
    "puzzle24": puzzle24,
}
