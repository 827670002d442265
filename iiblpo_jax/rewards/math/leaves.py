"""Formulas, numbers, quantities and words, two at a time: bases, residues, units, percent, degrees."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import sympy

from iiblpo_jax.rewards.math.names import compact
from iiblpo_jax.rewards.math.numbers import rational
from iiblpo_jax.rewards.math.quantities import Quantity, quantity
from iiblpo_jax.rewards.math.units import Unit
from iiblpo_jax.rewards.math.values import SLASH, Unreadable, Value, done, equal, readable, rounded, uncased, value

BASED = re.compile(
    r"\(?\s*(?:\\text\{)?([0-9A-F]*\d[0-9A-Fa-f ]*|[A-F]+(?=\}?\s*\)?\s*_\{?16))\}?\s*\)?\s*"  # digits, some of 0 to 9
    r"_\s*\{?\s*\(?\s*(\d{1,2}|\\text\{(\w+)\})\s*\)?\s*\}?"
)
BASES = {
    name: base for base, name in enumerate("two three four five six seven eight nine ten eleven twelve".split(), 2)
}
BASES |= {"binary": 2, "octal": 8, "decimal": 10, "hex": 16, "sixteen": 16}
RESIDUE = re.compile(r"(.*?)\s*\(?\s*\\pmod\{(.+)\}\s*\)?", re.S)
DECIMAL = re.compile(r"-?\d*\.\d+")
ANGLES: dict[Any, Any] = {(("angle", 1),): sympy.pi / 180, (("radian", 1),): sympy.Integer(1)}
BY_VALUE: dict[Any, Any] = {(("angle", 1),): sympy.pi / 180, (("percent", 1),): Fraction(1, 100)}


def reads_leaf(text: str) -> bool:
    """Whether a leaf of a gold answer is words, a number in a base, a residue, or a formula that can be read."""
    found = quantity(text)
    formula = RESIDUE.sub(r"\1", found.text)
    named = text in ("\\emptyset", "\\mathbb{R}", "\\ldots")
    return found.is_words or named or bool(BASED.fullmatch(formula)) or readable(formula)


def same_leaf(gold: str, answer: str) -> bool:
    """Whether two leaves say the same."""
    if compact(gold) == compact(answer):
        return True
    if BASED.fullmatch(gold) or BASED.fullmatch(answer):
        return _bases(gold, answer)
    if "\\pmod" in gold or "\\pmod" in answer:
        return _residues(gold, answer)
    lefts, rights = ([found for found in (quantity(text), quantity(text).perhaps) if found] for text in (gold, answer))
    return any(_quantities(left, right) for left in lefts for right in rights)


def _bases(gold: str, answer: str) -> bool:
    """By digits in the same base; a number without a base is right by its digits, or by its value."""
    left, right = (BASED.fullmatch(text) for text in (gold, answer))
    if left and right:
        if _base(left) == _base(right):
            return _digits(left) == _digits(right)
        return 10 in (_base(left), _base(right)) and _number(left) is not None and _number(left) == _number(right)
    number = rational(answer if left else gold)
    based = left or right
    if number is None or based is None:
        return False
    return number == _number(based) or bool(left and compact(answer).lstrip("0") == _digits(left))


def _base(based: re.Match[str]) -> int | None:
    return BASES.get(based[3].lower()) if based[3] else int(based[2])


def _digits(based: re.Match[str]) -> str:
    return based[1].replace(" ", "").upper().lstrip("0")


def _number(based: re.Match[str]) -> int | None:
    base = _base(based)
    try:
        return int(_digits(based) or "0", base) if base and 2 <= base <= 36 else None
    except ValueError:
        return None


def _residues(gold: str, answer: str) -> bool:
    left, right = (RESIDUE.fullmatch(text) for text in (gold, answer))
    if left and right:
        return same_leaf(left[2], right[2]) and same_leaf(left[1], right[1])
    return same_leaf(left[1], answer) if left else bool(right and same_leaf(gold, right[1]))


def _quantities(gold: Quantity, answer: Quantity) -> bool:
    if gold.is_words or answer.is_words:
        return compact(gold.text).lower() == compact(answer.text).lower()
    pairs = _factors(gold.unit, answer.unit)
    return any(_equal(gold, answer, gold.scale * left, answer.scale * right) for left, right in pairs)


def _factors(gold: Unit | None, answer: Unit | None) -> list[tuple[Value, Value]]:
    """What the two sides may be multiplied by to be compared.

    A number without a unit is compared with one that has it by its number; with percent and degrees, also by value.
    """
    if gold and answer:
        if gold.powers == answer.powers:
            return [(1, 1) if gold == answer else (gold.factor, answer.factor)]
        both = gold.powers in ANGLES and answer.powers in ANGLES
        return [(ANGLES[gold.powers], ANGLES[answer.powers])] if both else []
    unit = gold or answer
    if unit is None or unit.powers not in BY_VALUE:
        return [(1, 1)]
    factor = BY_VALUE[unit.powers]
    return [(1, 1), (factor, 1) if gold else (1, factor)]


def _equal(gold: Quantity, answer: Quantity, left: Value, right: Value) -> bool:
    for a in _values(gold.text):
        for b in _values(answer.text):
            if equal(_times(a, left), _times(b, right)):
                return True
            if left == right == 1 and (lower := uncased(a, b)) and equal(*lower):
                return True
            if left == right == 1 and (_rounds(gold.text, b) or _rounds(answer.text, a)):
                return True
    return False


def _rounds(text: str, other: Value) -> bool:
    return bool(DECIMAL.fullmatch(text)) and rounded(text, other)


def _times(found: Value, factor: Value) -> Value:
    if factor == 1 or (isinstance(found, Fraction) and isinstance(factor, Fraction)):
        return found if factor == 1 else found * factor
    return done(found) * done(factor)


def _values(text: str) -> list[Value]:
    """The values of a formula: `1/2x` has two."""
    found = []
    for spelling in dict.fromkeys((text, SLASH.sub(r"\\frac{\1}{\2}", text))):
        try:
            found.append(value(spelling))
        except Unreadable:
            continue
    return found
