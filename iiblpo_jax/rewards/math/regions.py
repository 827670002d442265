"""Sets of real numbers: intervals, inequalities, unions and differences, compared by where they hold.

All ends of both sets are put in order; two sets are equal if they agree on every end and between every two of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import sympy

from iiblpo_jax.rewards.math.names import is_name, text_of
from iiblpo_jax.rewards.math.quantities import quantity
from iiblpo_jax.rewards.math.reading import Chain, Items, Leaf, Node, Sets
from iiblpo_jax.rewards.math.values import Unreadable, Value, done, equal, number, value

ORDER = ("<", ">", "\\le", "\\ge", "\\ne")
MIRRORED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "\\ne": "\\ne", "=": "="}
INFINITE = {"\\infty": sympy.oo, "+\\infty": sympy.oo, "-\\infty": -sympy.oo}
LOWEST, HIGHEST = 0, 1  # the first two ends
Test = Callable[[int], bool]


class Place(NamedTuple):
    """An end: its value, and the number it is ordered by."""

    value: Value
    number: Any


class Region:
    """The ends of sets that are compared, both infinities among them, and the names of their variables.

    In order, end number i stands at position 2i + 1; what is between two ends, at the even positions.
    """

    def __init__(self) -> None:
        self.ends = [Place(-sympy.oo, -sympy.oo), Place(sympy.oo, sympy.oo)]
        self.names: set[str] = set()

    def end(self, node: Node) -> int:
        """The index of an end among the ends, new ones at the back."""
        place = _place(node)
        for index, known in enumerate(self.ends):
            if known.number == place.number or (
                abs(known.number - place.number) < 1e-9 and equal(known.value, place.value)
            ):
                return index
        self.ends.append(place)
        return len(self.ends) - 1


class NotOne(ValueError):
    """Not a set of real numbers."""


def is_region(node: Node) -> bool:
    """Whether a node can only be a set of real numbers, or conditions on one."""
    if isinstance(node, Sets):
        return True
    if isinstance(node, Chain):
        return any(sign in ORDER for sign in node.signs)
    if isinstance(node, Items):
        return (node.kind == "half" and len(node.parts) == 2) or (
            node.kind == "list" and any(map(is_region, node.parts))
        )
    return isinstance(node, Leaf) and node.text == "\\mathbb{R}"


def same_region(left: Node, right: Node) -> bool | None:
    """Whether two nodes are the same set of real numbers; None where one of them is none, or has letters as ends."""
    region = Region()
    try:
        names: list[set[str]] = []
        tests = []
        for node in (left, right):
            region.names = set()
            tests.append(_test(node, region))
            names.append(region.names)
    except NotOne:
        return None
    if names[0] and names[1] and names[0] != names[1]:
        return False
    order = sorted(range(len(region.ends)), key=lambda index: region.ends[index].number)
    ranks = {index: 2 * rank + 1 for rank, index in enumerate(order)}
    first, second = (test(ranks) for test in tests)
    return all(first(at) == second(at) for at in range(2 * len(order) + 1))


def as_interval(node: Node) -> Node:
    """`x > a` and `a < x < b` as intervals, whose ends may be letters; any other node as it is."""
    if not isinstance(node, Chain) or not set(node.signs) <= {"<", ">", "\\le", "\\ge"} or len(node.sides) > 3:
        return node
    sides, signs = list(node.sides), list(node.signs)
    if len(sides) == 2:
        sides, signs = _two_sided(sides, signs[0])
    if signs[0] in (">", "\\ge"):
        sides, signs = sides[::-1], [MIRRORED[sign] for sign in signs[::-1]]
    if not is_name(sides[1]) or not set(signs) <= {"<", "\\le"}:
        return node
    brackets = ("[" if signs[0] == "\\le" else "(") + ("]" if signs[1] == "\\le" else ")")
    return Items((sides[0], sides[2]), "tuple" if brackets == "()" else "half", brackets=brackets)


def _two_sided(sides: list[Node], sign: str) -> tuple[list[Node], list[str]]:
    """`x < a` as `-\\infty < x < a`: what stands first is the variable, if it is a name."""
    if not is_name(sides[0]):
        sides, sign = sides[::-1], MIRRORED[sign]
    below = sign in ("<", "\\le")
    return [Leaf("-\\infty" if below else "\\infty"), *sides], ["<" if below else ">", sign]


def _place(node: Node) -> Place:
    text = node.text.replace(" ", "") if isinstance(node, Leaf) else ""
    if text in INFINITE:
        return Place(INFINITE[text], INFINITE[text])
    try:
        found = value(quantity(node.text).text) if isinstance(node, Leaf) else None
    except Unreadable as error:
        raise NotOne from error
    numeral = None if found is None else number(done(found))
    if numeral is None or not numeral.is_real:
        raise NotOne
    return Place(found, numeral)


def _test(node: Node, region: Region) -> Callable[[dict[int, int]], Test]:
    """The test of a node, once the ranks of all ends are known.

    Raises:
      NotOne: not a set of real numbers.
    """
    if isinstance(node, Items):
        return _items(node, region)
    if isinstance(node, Sets):
        left, right = _test(node.left, region), _test(node.right, region)
        return functools.partial(_combined, node.sign, left, right)
    if isinstance(node, Chain):
        return _chain(node, region)
    if isinstance(node, Leaf) and node.text == "\\mathbb{R}":
        return _span(LOWEST, HIGHEST, "()")
    if isinstance(node, Leaf) and node.text == "\\emptyset":
        return lambda ranks: lambda at: False
    raise NotOne


def _items(node: Items, region: Region) -> Callable[[dict[int, int]], Test]:
    if node.kind == "set":
        ends = [region.end(part) for part in node.parts]
        return lambda ranks: lambda at: at in [ranks[end] for end in ends]
    if node.kind != "list" and len(node.parts) == 2:
        return _span(region.end(node.parts[0]), region.end(node.parts[1]), node.brackets)
    if node.kind != "list" or not any(map(is_region, node.parts)):
        raise NotOne
    tests = [_test(part, region) for part in node.parts]

    def joined(ranks: dict[int, int]) -> Test:
        parts = [test(ranks) for test in tests]
        both: Test = lambda at: all(part(at) for part in parts)  # noqa: E731
        either: Test = lambda at: any(part(at) for part in parts)  # noqa: E731
        empty = not any(both(at) for at in range(2 * len(ranks) + 1))
        return either if node.joined == "or" or (empty and not node.joined) else both

    return joined


def _span(low: int, high: int, brackets: str) -> Callable[[dict[int, int]], Test]:
    def test(ranks: dict[int, int]) -> Test:
        first, last = ranks[low] - (brackets[0] == "["), ranks[high] + (brackets[-1] == "]")
        return lambda at: first < at < last

    return test


def _combined(sign: str, left: Callable, right: Callable, ranks: dict[int, int]) -> Test:
    first, second = left(ranks), right(ranks)
    if sign == "cup":
        return lambda at: first(at) or second(at)
    return lambda at: first(at) and second(at) == (sign == "cap")


def _chain(node: Chain, region: Region) -> Callable[[dict[int, int]], Test]:
    """`a < x \\le b`: one name, compared with its neighbours."""
    places = [index for index, side in enumerate(node.sides) if is_name(side)]
    if len(places) != 1 or len(node.sides) > 3:
        raise NotOne
    (at_name,) = places
    region.names.add(text_of(node.sides[at_name]))
    tests = []
    for index, sign in enumerate(node.signs):
        if index not in (at_name - 1, at_name) or sign not in MIRRORED:
            raise NotOne
        other, sign = (node.sides[index + 1], sign) if index == at_name else (node.sides[index], MIRRORED[sign])
        tests.append(_compared(sign, other, region))
    return lambda ranks: lambda at: all(test(ranks)(at) for test in tests)


def _compared(sign: str, other: Node, region: Region) -> Callable[[dict[int, int]], Test]:
    end = region.end(other)
    everywhere = _span(LOWEST, HIGHEST, "()")
    if sign in ("=", "\\ne"):
        return lambda ranks: lambda at: everywhere(ranks)(at) and (at == ranks[end]) == (sign == "=")
    bracket = sign in ("\\le", "\\ge")
    if sign in (">", "\\ge"):
        return _span(end, HIGHEST, "[)" if bracket else "()")
    return _span(LOWEST, end, "(]" if bracket else "()")
