"""A calculator: `12+7*3=` is answered with `33;`. Its arithmetic is its own; nothing is ever run as a program."""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction

from iiblpo_jax.environments.interface import Environment, Reply
from iiblpo_jax.rewards.verifier import Problem

LONGEST = 120  # characters of an expression: what bounds its value and the time that it takes
DEEPEST = 20  # parentheses within each other
TOKEN = re.compile(r"\s*(\d+(?:\.\d+)?|[-+*/()])")
TAIL = re.compile(r"[-+*/().\d ]*$")


class Wrong(ValueError):
    """An expression that has no value."""


def evaluate(expression: str) -> Fraction:
    """The value of whole or decimal numbers under `+ - * /`, signs and parentheses, exactly.

    Raises:
      Wrong: it is none, it divides by zero, or it is too long or too deep.
    """
    if len(expression) > LONGEST:
        raise Wrong("too long")
    tokens, at = [], 0
    expression = expression.rstrip()
    while at < len(expression):
        if not (found := TOKEN.match(expression, at)):
            raise Wrong("no expression")
        tokens.append(found[1])
        at = found.end()
    value = _sum(tokens, 0)
    if tokens:
        raise Wrong("no expression")
    return value


def _sum(tokens: list[str], depth: int) -> Fraction:
    value = _product(tokens, depth)
    while tokens and tokens[0] in "+-":
        sign = 1 if tokens.pop(0) == "+" else -1
        value += sign * _product(tokens, depth)
    return value


def _product(tokens: list[str], depth: int) -> Fraction:
    value = _factor(tokens, depth)
    while tokens and tokens[0] in "*/":
        times, factor = tokens.pop(0) == "*", _factor(tokens, depth)
        if not times and factor == 0:
            raise Wrong("division by zero")
        value = value * factor if times else value / factor
    return value


def _factor(tokens: list[str], depth: int) -> Fraction:
    sign = 1
    while tokens and tokens[0] in "+-":
        sign *= 1 if tokens.pop(0) == "+" else -1
    if not tokens or depth > DEEPEST:
        raise Wrong("no expression")
    token = tokens.pop(0)
    if token[0].isdigit():
        return sign * Fraction(token)
    if token != "(":
        raise Wrong("no expression")
    value = _sum(tokens, depth + 1)
    if not tokens or tokens.pop(0) != ")":
        raise Wrong("no expression")
    return sign * value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calculator(Environment):
    """Works out the expression in front of the end of a turn. Its state is the number of turns so far.

    Attributes:
      opening: where an expression begins; empty = with the longest run of digits and operators before `turn_end`.
      turn_end: where it ends.
      before, after: what its value is written between: a whole number, or a fraction `p/q`; `error` if it has none.
    """

    opening: str = ""
    turn_end: str = "="
    before: str = ""
    after: str = ";"
    bounded = True

    def reset(self, problem: Problem) -> int:
        """No turns yet."""
        return 0

    def step(self, state: int, text: str) -> Reply:
        """The value of the turn's last expression."""
        said = text.rpartition(self.turn_end)[0]
        expression = said.rpartition(self.opening)[2] if self.opening else TAIL.search(said)[0]  # pyright: ignore
        try:
            value = str(evaluate(expression))
        except Wrong:
            value = "error"
        return Reply(state + 1, f"{self.before}{value}{self.after}")
