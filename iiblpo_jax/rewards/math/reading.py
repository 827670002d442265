"""The structure of an answer: lists, tuples, sets, intervals, chains of relations, ratios, matrices, and their leaves.

`readings` gives every way in which a text can reasonably be read: `100,200` is a number and a list.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence

from iiblpo_jax.rewards.math.groups import balanced, enclosed, split
from iiblpo_jax.rewards.math.quantities import HEAD, compound, is_filler
from iiblpo_jax.rewards.math.spelling import spell, trim
from iiblpo_jax.rewards.math.words import WORD

MAX_DEPTH = 30  # of brackets in brackets; what is nested deeper is one formula


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A formula, a quantity or words: spelled text."""

    text: str


@dataclasses.dataclass(frozen=True)
class Items:
    """Several answers, or the parts of one.

    Attributes:
      parts: what they are.
      kind: `list` without brackets, `set` in braces, `tuple` in parentheses, `square` in square brackets, `half` in one
        of each: a half-open interval.
      joined: the words between the parts of a list, `and` or `or` where there are any.
      brackets: the two brackets.
    """

    parts: tuple[Node, ...]
    kind: str
    joined: str = ""
    brackets: str = ""


@dataclasses.dataclass(frozen=True)
class Chain:
    """`a = b = c`, `1 < x \\le 2`: sides and the signs between them."""

    sides: tuple[Node, ...]
    signs: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Sets:
    """Union, intersection or difference of two sets."""

    sign: str
    left: Node
    right: Node


@dataclasses.dataclass(frozen=True)
class Ratio:
    """`a : b : c`."""

    parts: tuple[Node, ...]


@dataclasses.dataclass(frozen=True)
class Grid:
    """A matrix by rows; `kind` says whether it stands between bars."""

    rows: tuple[tuple[Node, ...], ...]
    kind: str


Node = Leaf | Items | Chain | Sets | Ratio | Grid

SEMICOLON = re.compile(r";")
COMMA = re.compile(r"\s*(?:,\s*\\text\{(?:and|or|And|Or|AND|OR)\}|,|\\text\{(?:and|or|And|Or|AND|OR)\})\s*")
SIGN = re.compile(r"=|<|>|\\(?:le|ge|ne|approx|equiv|in|to)(?![A-Za-z])")
SETS = {  # the weakest first
    "cup": re.compile(r"\\(?:cup|bigcup)(?![A-Za-z])"),
    "cap": re.compile(r"\\(?:cap|bigcap)(?![A-Za-z])"),
    "setminus": re.compile(r"\\setminus(?![A-Za-z])|(?<=[}\])])\s*-\s*(?=\\\{)"),
}
COLON = re.compile(r"\s*(?::|\\text\{to\})\s*")
BAR = re.compile(r"\\mid(?![A-Za-z])|\||:")
PLUS_MINUS = re.compile(r"\\(pm|mp)(?![A-Za-z])")
MATRIX = re.compile(r"\\begin\{(matrix|[pbBvV]matrix|smallmatrix|array)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}", re.S)
SPOKEN = {
    **dict.fromkeys(
        ("no solution", "no solutions", "no real solution", "no real solutions", "empty set", "the empty set"),
        "\\emptyset",
    ),
    **dict.fromkeys(
        ("all real numbers", "all reals", "any real number", "all real", "the real numbers", "every real number"),
        "\\mathbb{R}",
    ),
    **dict.fromkeys(("all integers", "integers", "the integers", "any integer"), "\\mathbb{Z}"),
    **dict.fromkeys(("infinity", "positive infinity"), "\\infty"),
}
QUANTIFIERS = ("all", "for", "every", "when")
BRACKETS = ("(", "[", "\\{")
THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d]|,\d)")
GROUPED = re.compile(r"(?<=\d),(?=\d{3})")
EUROPEAN = re.compile(r"([\[\]])([^\[\]()]*,[^\[\]()]*)([\[\]])")


@functools.lru_cache(maxsize=1024)
def readings(text: str, plain: bool = False) -> tuple[Node, ...]:
    """Every reading of an answer, the likeliest first.

    Args:
      text: as it stands in the box or in the file of gold answers.
      plain: see `spell`.
    """
    spelled = spell(text, plain=plain)
    found = [read(spelled)]
    if THOUSANDS.search(spelled) and not spelled.startswith(BRACKETS):
        found.insert(0, read(THOUSANDS.sub(lambda number: GROUPED.sub("", number.group()), spelled)))
    return tuple(found)


def read(text: str, depth: int = 0) -> Node:
    """The structure of a spelled text."""
    text = trim(text)
    if depth > MAX_DEPTH or not balanced(text):
        return Leaf(text)
    if matrix := MATRIX.fullmatch(text):
        return _grid(matrix, depth)
    text = _unled(text)
    text = _european(compound(text) or text)
    for separator in (SEMICOLON, COMMA):
        parts, between = split(text, separator)
        if between:
            return _listed(parts, between, depth)
    sides, signs = split(text, SIGN)
    if signs and all(side.strip() for side in sides):
        return Chain(tuple(read(side, depth + 1) for side in sides), tuple(sign.strip() for sign in signs))
    for name, sign in SETS.items():
        parts, between = split(text, sign)
        if between and all(part.strip() for part in parts):
            left = text[: -len(parts[-1] + between[-1])]
            return Sets(name, read(left, depth + 1), read(parts[-1], depth + 1))
    return _whole(text, depth)


def _unled(text: str) -> str:
    """Without the words that lead to a bracket or to a relation."""
    said = HEAD.match(text)
    rest = text[said.end() :] if said else ""
    if not said or not rest or SIGN.match(rest):
        return text
    words = WORD.findall(said.group())
    brackets = rest.startswith(BRACKETS) and all(map(is_filler, words))
    relation = SIGN.search(rest) and all(is_filler(word) or word.lower() in QUANTIFIERS for word in words)
    return rest if brackets or relation else text


def _whole(text: str, depth: int) -> Node:
    """A text with no separator outside of its brackets."""
    if group := enclosed(text):
        return _bracketed(*group, depth)
    parts, colons = split(text, COLON)
    if colons and all(part.strip() for part in parts):
        return Ratio(tuple(read(part, depth + 1) for part in parts))
    if PLUS_MINUS.search(text):
        return _both_signs(text, depth)
    words = [] if WORD.sub("", text).strip() else WORD.findall(text.lower())
    words = words[2:] if words[:2] == ["there", "is"] else words
    return Leaf(SPOKEN.get(" ".join(words), text))


def _bracketed(opening: str, content: str, closing: str, depth: int) -> Node:
    if opening == "\\{":
        names, bars = split(content, BAR)
        if bars and len(names) == 2:
            return read(names[1], depth + 1)
    if opening in "([" and PLUS_MINUS.search(content) and "," in content:
        return _both_signs(opening + content + closing, depth)
    inner = read(content, depth + 1)
    if opening == "{" and closing == "}":
        return inner
    if isinstance(inner, Items) and inner.kind == "list":
        kinds = {("\\{", "\\}"): "set", ("(", ")"): "tuple", ("[", "]"): "square"}
        return dataclasses.replace(inner, kind=kinds.get((opening, closing), "half"), brackets=opening + closing)
    if opening == "\\{":
        return Items((inner,), "set", brackets="\\{\\}")
    return inner


def _listed(parts: Sequence[str], between: Sequence[str], depth: int) -> Node:
    joined = next((word for word in ("or", "and") if any(word in sign.lower() for sign in between)), "")
    nodes: list[Node] = []
    for part in parts:
        if trim(part):
            node = read(part, depth + 1)
            nodes += node.parts if isinstance(node, Items) and node.kind == "list" else (node,)
    return nodes[0] if len(nodes) == 1 else Items(tuple(nodes), "list", joined)


def _both_signs(text: str, depth: int) -> Node:
    upper = PLUS_MINUS.sub(lambda sign: "+" if sign[1] == "pm" else "-", text)
    lower = PLUS_MINUS.sub(lambda sign: "-" if sign[1] == "pm" else "+", text)
    parts = (read(upper.removeprefix("+"), depth + 1), read(lower.removeprefix("+"), depth + 1))
    return Items(parts, "list", "or")


def _grid(matrix: re.Match[str], depth: int) -> Node:
    body = matrix[2].replace("\\hline", "")
    rows = [row for row in body.split("\\\\") if row.strip()]
    cells = tuple(tuple(read(cell, depth + 1) for cell in row.split("&")) for row in rows)
    return Grid(cells, "bars" if matrix[1][0] in "vV" else "matrix")


def _european(text: str) -> str:
    """`]0,1[` as `(0,1)`."""
    if not (text.startswith("]") or text.endswith("[")):
        return text
    return EUROPEAN.sub(lambda f: ("(" if f[1] == "]" else "[") + f[2] + (")" if f[3] == "[" else "]"), text)
