"""Formulas as SymPy expressions, by math-verify's parser, and whether two of them are equal, exactly.

Numbers without letters are compared as fractions or, where they are irrational, to fifty digits relative to their
size; formulas with letters at points where neither side can hide a difference: an identity that holds at five points
of no special kind, to thirty digits, holds. What has no value there (integrals that do not close, matrices of
letters) is left to math-verify's own comparison.
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import ConversionConfig, latex2sympy

from iiblpo_jax.rewards.math.groups import balanced
from iiblpo_jax.rewards.math.numbers import rational, recurring

DIGITS = 60  # to which irrational numbers are known
AGREE = sympy.Float("1e-50", DIGITS)  # relative
POINTS = tuple(
    tuple(sympy.Rational(*pair) for pair in point)
    for point in (
        ((137, 100), (261, 70), (47, 19), (613, 200), (89, 31), (521, 90)),
        ((61, 97), (83, 190), (29, 71), (17, 53), (71, 101), (37, 113)),
        ((283, 53), (7, 11), (311, 101), (19, 67), (229, 47), (5, 13)),
        ((-127, 90), (211, 80), (-31, 43), (-409, 101), (13, 37), (-57, 23)),
        ((53, 91), (-173, 60), (59, 23), (-11, 41), (-307, 83), (73, 29)),
    )
)
MANY = 24  # letters beyond which nothing is compared

UNREADABLE = re.compile(
    r"\\(?:angle|triangle)(?![A-Za-z])|\^\s*\d\d|\\text|\\ldots|\\emptyset|\\mathbb|--|(?<![\d_^.])\d+ \d"
)
MIXED = re.compile(r"(?<![\d.^_}A-Za-z])(\d+)\s*\\frac\{\s*(\d+)\s*\}\{\s*(\d+)\s*\}(?!\s*\^)")
REPEATING = re.compile(r"\d*\.\d*\\(?:overline|bar|dot)\{\d+\}")
E_NOTATION = re.compile(r"(?<![\w.])(\d+\.?\d*|\.\d+)[eE]([+-]?\d{1,4})(?![\w.])")
DECIMAL = re.compile(r"(?<![\d_])(\d+\.\d*|\.\d+)(?!\d)")
DEGREE = re.compile(r"\\text\{degrees?\}")
SLASH = re.compile(r"(?<![\w}).])(\d+)/(\d+)(?= ?(?:[A-Za-z(]|\\(?:sqrt|pi)))")


Value = Any  # a Fraction or a SymPy expression


class Unreadable(ValueError):
    """Not a formula."""


@functools.lru_cache(maxsize=1024)
def value(text: str) -> Value:
    """The number or the expression that a spelled formula writes.

    Raises:
      Unreadable: it writes none.
    """
    found = rational(text)
    return found if found is not None else expression(exact(text))


def readable(text: str) -> bool:
    """Whether it writes one."""
    try:
        value(text)
    except Unreadable:
        return False
    return True


def exact(text: str) -> str:
    """Without decimals, mixed numbers and degrees: fractions and sums in their place."""
    text = text.replace("\\log _e", "\\ln ").replace("\\log_e", "\\ln ").replace("\\log_{e}", "\\ln ")
    text = DEGREE.sub(r"\\cdot \\frac{\\pi }{180}", text)
    text = MIXED.sub(
        lambda f: rf"(\frac{{{int(f[1]) * int(f[3]) + int(f[2])}}}{{{f[3]}}})" if int(f[2]) < int(f[3]) else f.group(),
        text,
    )
    text = E_NOTATION.sub(lambda f: rf"({f[1]}\cdot 10^{{{f[2]}}})", text)
    text = REPEATING.sub(lambda f: _tex(recurring(f.group())), text)
    return DECIMAL.sub(lambda f: _tex(Fraction(f[1])), text)


def _tex(number: Fraction | None) -> str:
    if number is None:
        raise Unreadable
    return rf"(\frac{{{number.numerator}}}{{{number.denominator}}})"


def expression(text: str) -> Any:
    """What math-verify's parser makes of LaTeX, letters free of assumptions and their case kept.

    Raises:
      Unreadable: it makes nothing of it.
    """
    if not text.strip() or UNREADABLE.search(text) or not balanced(text):
        raise Unreadable(text)
    try:
        found = latex2sympy(
            text, normalization_config=None, conversion_config=ConversionConfig(lowercase_symbols=False)
        )
    except Exception as error:  # the parser raises plain Exceptions, and whatever SymPy raises under it
        raise Unreadable(text) from error
    if not isinstance(found, sympy.Expr | sympy.MatrixBase):
        raise Unreadable(text)
    constants: Any = {sympy.Symbol("i"): sympy.I, sympy.Symbol("pi"): sympy.pi, sympy.Symbol("e"): sympy.E}
    return found.subs(constants) if found.free_symbols & set(constants) else found  # pyright: ignore[reportCallIssue]


def equal(left: Value, right: Value) -> bool:
    """Whether two values are the same number, or the same function of their letters."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left == right
    a, b = (done(side) for side in (left, right))
    if isinstance(a, sympy.MatrixBase) or isinstance(b, sympy.MatrixBase):
        return isinstance(a, sympy.MatrixBase) and isinstance(b, sympy.MatrixBase) and _verified(a, b)
    if a == b:
        return not a.has(sympy.nan, sympy.zoo)
    if (
        (a.is_Rational and b.is_Rational)
        or a.has(sympy.oo, sympy.zoo, sympy.nan)
        or b.has(sympy.oo, sympy.zoo, sympy.nan)
    ):
        return False
    agree = _agree(a, b)
    if agree is None:
        agree = _verified(a, b)
    return agree


def done(found: Value) -> Any:
    """As SymPy has it, with what can be computed computed."""
    if isinstance(found, Fraction):
        return sympy.Rational(found.numerator, found.denominator)
    try:
        return found.doit()
    except (TypeError, ValueError, AttributeError, NotImplementedError, ZeroDivisionError):
        return found


def _agree(a: Any, b: Any) -> bool | None:
    """Whether two expressions agree at all points; None where they have no values to compare."""
    a, b = _named(a), _named(b)
    letters = sorted(a.free_symbols | b.free_symbols, key=str)
    if len(letters) > MANY:
        return False
    compared = 0
    for index, point in enumerate(POINTS if letters else POINTS[:1]):
        at = {letter: point[i % len(point)] + i // len(point) for i, letter in enumerate(letters)}
        x, y = number(a, at), number(b, at)
        if x is None or y is None:
            continue
        if index > 2 and not (x.is_real and y.is_real):
            continue  # a root or a logarithm of something negative: of whose branch nobody speaks
        same = _close(x, y)
        if not same:
            return False if same is False else None
        compared += 1
    return True if compared >= (2 if letters else 1) else None


def _named(expression: Any) -> Any:
    """With f(x) and the like as letters."""
    functions = expression.atoms(sympy.core.function.AppliedUndef)
    return expression.subs({function: sympy.Symbol(f"_{function}") for function in functions})


def number(expression: Any, at: Any = None) -> Any:
    """An expression to sixty digits, its letters at the values given; None where it is not a number."""
    found = expression.evalf(DIGITS, subs=at)  # not `subs`, which would work powers out exactly
    if found.is_number and (found.is_real or found.is_complex) and not found.has(sympy.nan, sympy.zoo, sympy.oo):
        parts = found.as_real_imag()
        return found if all(part.is_Float or part.is_Rational for part in parts) else None
    return None


def _close(x: Any, y: Any) -> bool | None:
    """Whether two numbers of sixty digits are one; None where both may be zero."""
    size = max(abs(x), abs(y))
    if size == 0:
        return True
    if size < sympy.Float("1e-45", DIGITS):
        return None if min(abs(x), abs(y)) == 0 or abs(x - y) > AGREE * size else True
    return bool(abs(x - y) <= AGREE * size)


def close_to_zero(x: Any) -> bool:
    """Whether a number that is no smaller than its terms by rights is nothing but what their last digits left."""
    return bool(abs(x) < AGREE)


def _verified(a: Any, b: Any) -> bool:
    """What cannot be computed at a point: numbers by simplification, formulas by math-verify.

    Its own time-outs share the one alarm of the process with the worker's, so they are off.
    """
    if not (a.free_symbols | b.free_symbols) and not isinstance(a, sympy.MatrixBase):
        return bool(sympy.simplify(a - b) == 0)  # math-verify calls equal what differs by 1e-15
    from math_verify import verify

    return bool(verify([a], [b], timeout_seconds=None))


def rounded(decimal: str, other: Value) -> bool:
    """Whether a decimal of at least eight significant digits, six of them behind the point, is `other`, rounded."""
    places = len(decimal.partition(".")[2])
    if places < 6 or len(decimal.replace(".", "").lstrip("-0")) < 8 or (isinstance(other, Fraction) and finite(other)):
        return False
    x = number(done(other))
    if x is None or not x.is_real:
        return False
    return bool(abs(x - sympy.Rational(decimal)) <= sympy.Rational(1, 2 * 10**places))


def finite(found: Fraction) -> bool:
    """Whether its decimals end."""
    rest = found.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    return rest == 1


def uncased(left: Any, right: Any) -> tuple[Any, Any] | None:
    """Two expressions with small letters for capitals; None where nothing changes, or one of them has both."""
    found = []
    for side in (left, right):
        letters = {letter: sympy.Symbol(letter.name.lower()) for letter in getattr(side, "free_symbols", ())}
        letters = {letter: small for letter, small in letters.items() if letter.name not in ("E", "I")}
        if len(set(letters.values())) < len(letters):
            return None
        found.append(side if isinstance(side, Fraction) else side.subs(letters, simultaneous=True))
    return (found[0], found[1]) if found != [left, right] else None
