"""Which side of an equation only names what the other side says: `x = 5`, `f(2) = 5`, `\\text{Area} = 5`, `m+n = 5`."""

from __future__ import annotations

import re

from iiblpo_jax.rewards.math.reading import Chain, Items, Leaf, Node

LETTER = r"(?:[A-Za-z]|\\(?:alpha|beta|gamma|delta|epsilon|varepsilon|theta|lambda|mu|nu|rho|sigma|tau|phi|chi|psi|omega|Delta|Gamma|Theta|Lambda|Sigma|Phi|Psi|Omega|ell))"  # noqa: E501
INDEX = r"(?:_(?:\w|\{[^{}]*\}))?"
VARIABLE = rf"{LETTER}{INDEX}'*"
POINTS = r"[A-Z]'?(?:_\d|_\{\d\})?"
SIMPLE = re.compile(rf"(?:m)?(?:{VARIABLE})")
HEADS = r"(?:[fghFGHPSVATLCRDEMNQWXpqrsuv]|\\(?:phi|psi|sigma|tau|mu|Phi|Psi|Pr|det|gcd|lcm|max|min)|\\text\{\w+\})"
FUNCTION = re.compile(
    rf"{HEADS}{INDEX}'*(?:\^\{{[^{{}}]*\}})?[(\[]+[^=]*[)\]]+|([a-z]){INDEX}'*\((?!\1)(?:[a-z]|\d+)\)"
)  # but no product n(n+1)
NAMES = [
    SIMPLE,
    FUNCTION,
    re.compile(
        rf"(?:m?\\(?:angle|triangle|measuredangle|overline|overrightarrow|vec|bar|hat|tilde|widehat|mathbf|square)(?:\{{[\w\s']+\}}|(?:{POINTS})+|{LETTER}))"
    ),
    re.compile(rf"(?:{POINTS}){{2,}}"),  # a segment, a polygon
    re.compile(
        rf"\|(?:(?:{POINTS}){{2,}}|[A-Zzw]|\\(?:vec|overline|overrightarrow)\{{\w+\}})\||\[(?:{POINTS}){{3,}}\]"
    ),
    re.compile(rf"\\(?:sin|cos|tan|cot|sec|csc)(?:\{{?|\()?\d?(?:{VARIABLE}|\\angle[A-Z]+)\)?\}}?"),
    re.compile(r"(?:\\text\{[^{}]*\}(?:_\{[^{}]*\})?)+"),
    re.compile(r"\\frac\{\\?d\w?\}\{d\w\}|\\(?:lim|sum|int|prod)(?![A-Za-z]).*", re.S),
]
COMPOSITES = [  # m+n, abc, m/n: asked for as they stand, and equations of their letters
    re.compile(rf"{VARIABLE}(?:[+-]?{VARIABLE})+"),
    re.compile(rf"(?:{VARIABLE}/{VARIABLE}|\\frac\{{(?:{VARIABLE})+\}}\{{(?:{VARIABLE})+\}})"),
]
SIMILAR = re.compile(r"y|[fgh]\(\w\)|[FGH]\(\w\)")


def is_name(node: Node, *, composite: bool = True) -> bool:
    """Whether a side of an equation is a name, or a tuple of names; a sum or a product of names where that will do."""
    if isinstance(node, Items):
        return node.kind in ("tuple", "list", "set") and all(is_name(part) for part in node.parts)
    patterns = NAMES + COMPOSITES if composite else NAMES
    return isinstance(node, Leaf) and any(name.fullmatch(compact(node.text)) for name in patterns)


def definition(chain: Node, *, composite: bool = True) -> tuple[str, Node] | None:
    """(name, value) of a chain `name = ... = value` or `value = name`; None for any other node."""
    if not isinstance(chain, Chain) or not set(chain.signs) <= {"=", "\\approx", "\\equiv", "\\to"}:
        return None
    first, last = chain.sides[0], chain.sides[-1]
    if is_name(first, composite=composite):
        return text_of(first), last
    if is_name(last, composite=composite) and len(chain.sides) == 2:
        return text_of(last), first
    return None


def similar(name: str, other: str) -> bool:
    """Whether two names may stand for the same thing: a function and its value, a word and a letter."""
    words = name.startswith("\\text") or other.startswith("\\text")
    return name == other or words or bool(SIMILAR.fullmatch(name) and SIMILAR.fullmatch(other))


def text_of(node: Node) -> str:
    """The spelled text of a node without blanks, good enough to compare names by."""
    if isinstance(node, Leaf):
        return compact(node.text)
    return ",".join(text_of(part) for part in node.parts) if isinstance(node, Items) else repr(node)


def compact(text: str) -> str:
    """Without blanks, but for those between digits."""
    return re.sub(r"\s+(?!\d)|(?<!\d)\s+", "", text)
