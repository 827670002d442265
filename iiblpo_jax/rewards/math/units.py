"""Units: which words name one, and how those of one kind convert. What is not listed is a noun, and says nothing."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple


class Unit(NamedTuple):
    """A product of powers of base units.

    Attributes:
      factor: how many base units it is.
      powers: {base: power}, as sorted pairs.
    """

    factor: Fraction
    powers: tuple[tuple[str, int], ...]


# base -> {factor: names}; plurals in s are understood
TABLE = {
    "length": {
        "1/1000": "mm millimeter millimetre", "1/100": "cm centimeter centimetre", "1/10": "dm decimeter decimetre",
        "1": "m meter metre", "1000": "km kilometer kilometre", "0.0254": "in inch inches", "0.3048": "ft foot feet",
        "0.9144": "yd yard", "1609.344": "mi mile",
    },
    "time": {
        "1/1000": "ms millisecond", "1": "s sec second", "60": "min minute", "3600": "h hr hour", "86400": "day",
        "604800": "week",
    },
    "month": {"1": "month", "12": "year yr"},
    "mass": {
        "1/1000": "mg milligram", "1": "g gram gm", "1000": "kg kilogram", "453.59237": "lb lbs",
        "28.349523125": "oz ounce",
    },
    "volume": {"1/1000": "ml milliliter millilitre mL", "1": "l liter litre L"},
    "gallon": {"1": "gallon gal", "1/4": "quart qt", "1/8": "pint pt", "1/16": "cup"},
    "dollar": {"1": "dollar USD usd buck", "1/100": "cent ¢"},
    "euro": {"1": "euro EUR eur"},
    "sterling": {"1": "sterling GBP gbp"},
    "yen": {"1": "yen JPY"},
    "rupee": {"1": "rupee Rs rs INR"},
    "percent": {"1": "percent percentage pct"},
    "angle": {"1": "degree deg"},
    "radian": {"1": "radian rad"},
    "celsius": {"1": "celsius Celsius"},
    "fahrenheit": {"1": "fahrenheit Fahrenheit"},
    "force": {"1": "N newton Newton"},
    "energy": {"1": "J joule Joule", "1000": "kJ kilojoule"},
    "power": {"1": "W watt Watt", "1000": "kW kilowatt"},
    "volt": {"1": "V volt Volt"},
    "hertz": {"1": "Hz hertz"},
}  # fmt: skip
UNITS = {
    name: Unit(Fraction(factor), ((base, 1),))
    for base, factors in TABLE.items()
    for factor, names in factors.items()
    for name in names.split()
}
SHORTHANDS = {"mph": "mile/hour", "kph": "km/h", "kmh": "km/h", "kmph": "km/h", "mps": "m/s"}
POWERS = {"square": 2, "sq": 2, "cubic": 3, "cu": 3}
RAISED = {"squared": 2, "cubed": 3}  # behind the unit
LETTERS = frozenset("m s h g l L N J W V".split())  # units that are also names of variables
FRACTION = re.compile(r"\\frac\{(\\text\{[A-Za-z]+\})\}\{(\\text\{[A-Za-z]+\}(?:\^\{\d\})?)\}")
PIECE = re.compile(r"\\text\{([^{}]*)\}|\^\{(-?\d)\}|(/)")


def unit_of(text: str) -> Unit | None:
    """The unit that the words of a spelled text name, `\\text{km}/\\text{h}`; None where one of them names none."""
    factors: list[tuple[Unit, int]] = []  # units with their powers
    sign, power = 1, 1
    for token in _tokens(FRACTION.sub(r"\1/\2", text)):
        if token in ("/", "per"):
            sign = -1
        elif token.lower() in POWERS:
            power = POWERS[token.lower()]
        elif token.lstrip("-").isdigit() or token in RAISED:
            if not factors:
                return None
            unit, before = factors.pop()
            factors.append((unit, before * (RAISED.get(token) or int(token))))
        elif unit := named(token):
            factors.append((unit, sign * power))
            power = 1
        else:
            return None
    return _product(factors)


def _tokens(text: str) -> list[str]:
    """Words, strokes and exponents."""
    found = []
    for word, exponent, stroke in PIECE.findall(text):
        word = SHORTHANDS.get(word, word)
        found += [exponent or stroke] if not word else re.findall(r"[^/]+|/", word)
    return found


def _product(factors: list[tuple[Unit, int]]) -> Unit | None:
    factor, powers = Fraction(1), {}
    for unit, power in factors:
        ((base, _),) = unit.powers
        factor *= unit.factor**power
        powers[base] = powers.get(base, 0) + power
    return Unit(factor, tuple(sorted(powers.items()))) if powers else None


def named(word: str) -> Unit | None:
    """The unit a word names, in the singular or the plural."""
    for name in (word, word.lower(), word.removesuffix("s"), word.lower().removesuffix("s")):
        if name in UNITS:
            return UNITS[name]
    return None
