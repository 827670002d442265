"""Whether an answer says what the gold answer says. The conventions are in docs/grading.md."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import sympy

from iiblpo_jax.rewards.math import equations, quantities
from iiblpo_jax.rewards.math.choices import Choice, choice
from iiblpo_jax.rewards.math.leaves import reads_leaf, same_leaf
from iiblpo_jax.rewards.math.names import compact, definition, is_name, similar
from iiblpo_jax.rewards.math.quantities import quantity
from iiblpo_jax.rewards.math.reading import Chain, Grid, Items, Leaf, Node, Ratio, Sets, readings
from iiblpo_jax.rewards.math.regions import as_interval, is_region, same_region
from iiblpo_jax.rewards.math.spelling import spell
from iiblpo_jax.rewards.math.values import Unreadable, done, equal, value

ASIDE = re.compile(r"\\text\{(?:as|where|which|since|because)\}")
PLACED = re.compile(r"[A-Z]'?(?:_\w|_\{\w+\})?\s*(\(.*\))", re.S)


def same(gold: str, answer: str) -> bool:
    """Whether an answer is right, in any reading of either."""
    found = _whole(spell(gold, plain=True), spell(answer))
    if found is not None:
        return found
    return any(match(left, right) for left in readings(gold, True) for right in readings(answer))


def reads(gold: str) -> bool:
    """Whether every formula in a gold answer can be read, in one of its readings."""
    return bool(spell(gold, plain=True)) and any(_reads(node) for node in readings(gold, True))


def _reads(node: Node) -> bool:
    if isinstance(node, Leaf):
        return reads_leaf(node.text)
    if isinstance(node, Sets):
        return _reads(node.left) and _reads(node.right)
    if isinstance(node, Grid):
        return all(_reads(cell) for row in node.rows for cell in row)
    if isinstance(node, Chain):
        return all(_reads(side) or is_name(side) for side in node.sides)
    return all(map(_reads, node.parts))


def _whole(gold: str, answer: str) -> bool | None:
    """What the whole text decides: the same text, a date, a time of day, a choice; None where it decides nothing."""
    if compact(gold) == compact(answer):
        return bool(answer)
    for reader in (quantities.date, quantities.clock):
        left, right = reader(gold), reader(answer)
        if left and right:
            return left[:2] == right[:2] and (left[2:] == right[2:] or not all(left[2:] + right[2:]))
    return _choices(choice(gold), choice(answer), gold, answer)


def _choices(gold: Choice, answer: Choice, gold_text: str, answer_text: str) -> bool | None:
    """Choices by their letters, and the texts behind them where both have one; without letters, by their texts."""
    if answer.text and not gold.letter:
        return same(gold_text, answer.text)
    if gold.text and not answer.letter:
        return same(gold.text, answer_text)
    if not gold.letter or not answer.letter or (gold.letter != answer.letter and not (gold.text or answer.text)):
        return None
    return gold.letter == answer.letter and (not gold.text or not answer.text or same(gold.text, answer.text))


def match(gold: Node, answer: Node) -> bool:
    """Whether two structures say the same."""
    gold, answer = _plainly(gold), _plainly(answer)
    if is_region(gold) or is_region(answer):
        return _regions(gold, answer)
    if isinstance(gold, Chain) and isinstance(answer, Chain):
        return _equations(gold, answer)
    if isinstance(answer, Chain):
        said = equations.values(answer)
        return said is not None and match(gold, said)
    if isinstance(gold, Chain):
        said = equations.values(gold)
        return said is not None and match(said, answer)
    if isinstance(gold, Grid) or isinstance(answer, Grid):
        return _grids(gold, answer)
    if isinstance(gold, Items) or isinstance(answer, Items):
        return _items(gold, answer)
    if isinstance(gold, Ratio) or isinstance(answer, Ratio):
        return _ratios(gold, answer)
    return isinstance(gold, Leaf) and isinstance(answer, Leaf) and same_leaf(gold.text, answer.text)


def _plainly(node: Node) -> Node:
    """`x \\in A` as A, `P(1,2)` as (1,2), `x = 1, 2` as 1, 2; everything else as it is."""
    if isinstance(node, Chain) and node.signs[0] == "\\in" and is_name(node.sides[0]) and len(node.sides) == 2:
        return node.sides[1]
    if isinstance(node, Chain) and "\\approx" in node.signs:
        return _exactly(node)
    if isinstance(node, Leaf) and "," in node.text and (point := PLACED.fullmatch(node.text)):
        return readings(point[1])[-1]
    if isinstance(node, Items) and node.kind == "list":
        return _sharing(node)
    return node


def _exactly(chain: Chain) -> Node:
    """`x = a \\approx b` as `x = a`, for b is rounded; `x \\approx b` as it is."""
    at = chain.signs.index("\\approx")
    if at == 0:
        return chain if is_name(chain.sides[0]) else chain.sides[0]
    return Chain(chain.sides[: at + 1], chain.signs[:at])


def _sharing(node: Items) -> Node:
    """A list without what only says which numbers its letters stand for, and without a name that all of it shares."""
    told = [part for part in node.parts if not _is_aside(part)]
    if len(told) == 1:
        return _plainly(told[0])
    node = dataclasses.replace(node, parts=tuple(told or node.parts))
    if isinstance(node.parts[0], Chain):
        first, *rest = node.parts
        said = definition(first)
        if said and not any(isinstance(part, Chain) for part in rest):
            return dataclasses.replace(node, parts=(said[1], *rest))
    return node


def _is_aside(node: Node) -> bool:
    """`k \\in \\mathbb{Z}`, "as required"."""
    if isinstance(node, Leaf):
        return bool(ASIDE.match(node.text))
    if not isinstance(node, Chain) or node.signs != ("\\in",):
        return False
    return isinstance(node.sides[1], Leaf) and node.sides[1].text.startswith("\\mathbb")


def _regions(gold: Node, answer: Node) -> bool:
    """Sets of real numbers; those with letters as ends, part by part."""
    found = same_region(gold, answer)
    if found is not None:
        return found
    gold, answer = (as_interval(node) for node in (gold, answer))
    if isinstance(gold, Chain) and isinstance(answer, Chain):
        return _chains(gold, answer)
    if isinstance(gold, Sets) and isinstance(answer, Sets) and gold.sign == answer.sign:
        straight = match(gold.left, answer.left) and match(gold.right, answer.right)
        crossed = match(gold.left, answer.right) and match(gold.right, answer.left)
        return straight or (gold.sign != "setminus" and crossed)
    if isinstance(gold, Items) and isinstance(answer, Items) and len(gold.parts) == len(answer.parts):
        if gold.kind == answer.kind == "list":
            return _matched(gold.parts, answer.parts)
        return gold.brackets == answer.brackets and _pairwise(gold.parts, answer.parts)
    return isinstance(gold, Leaf) and isinstance(answer, Leaf) and gold.text == answer.text


def _chains(gold: Chain, answer: Chain) -> bool:
    """Inequalities side by side, in either direction, or with all terms on one side."""
    mirrored = tuple(
        {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}.get(sign, sign) for sign in answer.signs[::-1]
    )
    for signs, sides in ((answer.signs, answer.sides), (mirrored, answer.sides[::-1])):
        if signs == gold.signs and _pairwise(gold.sides, sides):
            return True
    return False


def _equations(gold: Chain, answer: Chain) -> bool:
    left, right = (definition(chain, composite=False) for chain in (gold, answer))
    if left and right:
        if similar(left[0], right[0]) and not equations.mentions(right[0], right[1]):
            return match(left[1], right[1])
        if equations.is_number(left[1]):
            return False
    elif left and equations.is_number(left[1]):
        return False  # the answer restates the problem
    return equations.same_curve(gold, answer) or _pairwise(gold.sides, answer.sides)


def _items(gold: Node, answer: Node) -> bool:
    """Lists, sets and tuples. Without brackets or in braces the order is free; what is there twice, is there twice."""
    if not isinstance(gold, Items) or not isinstance(answer, Items):
        return match(_alone(gold), _alone(answer)) if _alone(gold) != gold or _alone(answer) != answer else False
    if len(gold.parts) != len(answer.parts):
        return False
    gold, answer = _unnamed(gold, answer), _unnamed(answer, gold)
    ordered = [items.kind not in ("list", "set") for items in (gold, answer)]
    if not any(ordered):
        return _matched(gold.parts, answer.parts)
    brackets = {items.brackets for items in (gold, answer)}
    if len(gold.parts) == 2 and brackets not in ({"()"}, {"()", ""}, {"[]"}):
        return False
    return "set" not in (gold.kind, answer.kind) and _pairwise(gold.parts, answer.parts)


def _alone(node: Node) -> Node:
    """The one element of a set of one."""
    return node.parts[0] if isinstance(node, Items) and node.kind == "set" and len(node.parts) == 1 else node


def _unnamed(items: Items, other: Items) -> Items:
    """`y = 4, x = 3` as 3, 4 in the order of the names, where the other side has no names."""
    named = [definition(part) for part in items.parts]
    if items.kind != "list" or not all(named) or any(isinstance(part, Chain) for part in other.parts):
        return items
    pairs = [pair for pair in named if pair]
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        return dataclasses.replace(items, parts=tuple(said for _, said in pairs))
    if all(len(name) == 1 for name in names):
        pairs.sort(key=lambda pair: pair[0])
    return dataclasses.replace(items, parts=tuple(said for _, said in pairs))


def _pairwise(left: Sequence[Node], right: Sequence[Node]) -> bool:
    return len(left) == len(right) and all(match(a, b) for a, b in zip(left, right, strict=True))


def _matched(left: Sequence[Node], right: Sequence[Node]) -> bool:
    """Whether two lists hold the same, in any order."""
    rest = list(right)
    for a in left:
        found = next((index for index, b in enumerate(rest) if match(a, b) and _same_noun(a, b)), None)
        if found is None:
            return False
        del rest[found]
    return not rest


def _same_noun(left: Node, right: Node) -> bool:
    """Whether two parts of lists count the same things, where both say what: 5 apples and 3 pears."""
    nouns = [quantity(node.text).noun if isinstance(node, Leaf) else "" for node in (left, right)]
    return not all(nouns) or nouns[0] == nouns[1]


def _grids(gold: Node, answer: Node) -> bool:
    """Matrices entry by entry; a vector may be a row, a column or a tuple."""
    left, right = (_vector(node) for node in (gold, answer))
    if isinstance(gold, Grid) and isinstance(answer, Grid):
        if gold.kind != answer.kind:
            return False
        if [len(row) for row in gold.rows] == [len(row) for row in answer.rows]:
            return all(_pairwise(a, b) for a, b in zip(gold.rows, answer.rows, strict=True))
    return left is not None and right is not None and _pairwise(left, right)


def _vector(node: Node) -> Sequence[Node] | None:
    if isinstance(node, Items):
        return node.parts if node.kind in ("tuple", "square") else None
    if not isinstance(node, Grid):
        return None
    cells = [cell for row in node.rows for cell in row]
    return cells if len(node.rows) == 1 or all(len(row) == 1 for row in node.rows) else None


def _ratios(gold: Node, answer: Node) -> bool:
    """Ratios up to a factor; a ratio of two is also a fraction."""
    left, right = _terms(gold), _terms(answer)
    if left is None or right is None or len(left) != len(right):
        return False
    return all(equal(a * right[0], b * left[0]) for a, b in zip(left, right, strict=True))


def _terms(node: Node) -> list | None:
    parts = node.parts if isinstance(node, Ratio) else (node,)
    try:
        found = [done(value(quantity(part.text).text)) for part in parts if isinstance(part, Leaf)]
    except Unreadable:
        return None
    if len(found) != len(parts) or any(not part.is_number or part.is_zero for part in found):
        return None
    return [found[0], sympy.Integer(1)] if len(parts) == 1 else found
