"""Equations: when one solves or defines what another does, and when two describe the same curve."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import sympy

from iiblpo_jax.rewards.math.names import SIMPLE, compact, definition, is_name
from iiblpo_jax.rewards.math.quantities import quantity
from iiblpo_jax.rewards.math.reading import Chain, Leaf, Node
from iiblpo_jax.rewards.math.values import POINTS, Unreadable, Value, close_to_zero, done, equal, number, value


def values(chain: Chain) -> Node | None:
    """What a chain of equalities says the answer is; None where it says no value: `2x = 5`, `4 = 5`, `x > 1`.

    A name is equal to the last side, and every number on the way must be that number; without a name it is a
    calculation, whose sides must all be equal.
    """
    found = definition(chain)
    if found is None:
        if not set(chain.signs) <= {"=", "\\approx", "\\equiv"} or any(map(is_name, chain.sides)):
            return None
        return chain.sides[-1] if _all_one(chain.sides) else None
    _, last = found
    between = [side for side in chain.sides[1:] if isinstance(side, Leaf)]
    return last if len(chain.sides) == 2 or _all_one(between, letters=True) else None


def _all_one(sides: Any, *, letters: bool = False) -> bool:
    """Whether all sides are one number; with `letters`, sides with letters in them may say what they like."""
    found = [_value(side) for side in sides]
    if letters:
        found = [side for side in found if side is not None and not free(side)]
    return all(side is not None and not free(side) and equal(side, found[0]) for side in found)


def _value(node: Node) -> Value | None:
    try:
        return value(quantity(node.text).text) if isinstance(node, Leaf) else None
    except Unreadable:
        return None


def free(found: Value) -> set[Any]:
    """The letters in a value."""
    return set() if isinstance(found, Fraction) else set(found.free_symbols)


def is_number(node: Node) -> bool:
    """Whether a node is a value without letters."""
    found = _value(node)
    return found is not None and not free(found)


def same_curve(left: Chain, right: Chain) -> bool:
    """Whether two equations hold at the same points of all their letters.

    One is a constant times the other, or each is solved where the other is: for one letter, at values of the rest.
    """
    a, b = _difference(left), _difference(right)
    if a is None or b is None or a.free_symbols != b.free_symbols or not a.free_symbols:
        return False
    letters = sorted(a.free_symbols, key=str)
    factor = _factor(a, b, letters)
    if factor is not None:
        return factor
    if len(letters) == 1:
        return False
    polynomials = [_polynomial(side, letters) for side in (a, b)]
    if None not in polynomials:
        return polynomials[0] == polynomials[1]
    found = [_solved_alike(a, b, letter, letters) for letter in letters]
    return False not in found and True in found


def _difference(chain: Chain) -> Any:
    sides = [_value(side) for side in (chain.sides[0], chain.sides[-1])]
    if None in sides or set(chain.signs) != {"="}:
        return None
    return done(sides[0]) - done(sides[1])  # pyright: ignore[reportArgumentType]


def _factor(a: Any, b: Any, letters: list[Any]) -> bool | None:
    """True if a/b is one number, not zero, at all points; None where it is not, which may still be one curve."""
    ratios = []
    for point in POINTS:
        at = {letter: point[i % len(point)] + i // len(point) for i, letter in enumerate(letters)}
        x, y = number(a, at), number(b, at)
        if x is None or y is None or close_to_zero(x) or close_to_zero(y):
            continue
        ratios.append(x / y)
    if len(ratios) < 3:
        return False
    return True if all(close_to_zero(ratio / ratios[0] - 1) for ratio in ratios) else None


def _polynomial(side: Any, letters: list[Any]) -> Any:
    """The numerator without repeated factors, if it is a polynomial: what a curve is made of."""
    top = sympy.numer(sympy.together(side))
    if not top.is_polynomial(*letters):
        return None
    try:
        return sympy.Poly(top, *letters).sqf_part().monic()
    except (sympy.polys.polyerrors.BasePolynomialError, NotImplementedError):
        return None


def _solved_alike(a: Any, b: Any, letter: Any, letters: list[Any]) -> bool | None:
    """Whether each equation holds where the other gives `letter`, for two choices of the rest; None: not solved."""
    for point in (POINTS[0], POINTS[3]):
        at = {other: point[i % len(point)] for i, other in enumerate(letters) if other != letter}
        first, second = (side.subs(at) for side in (a, b))
        try:
            roots = [sympy.solve(side, letter) for side in (first, second)]
        except (NotImplementedError, TypeError, ValueError):
            return None
        if not all(roots):
            return None if roots[0] == roots[1] else False
        for side, solutions in ((second, roots[0]), (first, roots[1])):
            found = [number(side.subs(letter, root)) for root in solutions]
            if any(x is None or not close_to_zero(x) for x in found):
                return False
    return True


def mentions(name: str, node: Node) -> bool:
    """Whether a one-letter name stands in what it is said to be."""
    found = _value(node)
    return bool(found is not None and SIMPLE.fullmatch(name) and sympy.Symbol(compact(name)) in free(found))
