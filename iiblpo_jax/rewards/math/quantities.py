"""One number, formula or phrase with what stands around it: units, currency, percent, nouns, "the answer is"."""

from __future__ import annotations

import functools
import re
from fractions import Fraction
from typing import NamedTuple

from iiblpo_jax.rewards.math.numbers import SCALES, in_words
from iiblpo_jax.rewards.math.spelling import trim
from iiblpo_jax.rewards.math.units import LETTERS, Unit, named, unit_of
from iiblpo_jax.rewards.math.words import WORD

FILLERS = frozenset(
    """the a an final answer is are was be equals equal value total therefore so thus hence we get have about
    approximately approx roughly around exactly option choice solution result it this there that of number point
    points set interval coordinates solutions values vector ratio probability""".split()
)
# Words that make more of a number than a number of things.
TELLING = frozenset(
    """or and not than at least most if when unless between either neither only up any all no none except cannot
    impossible false true yes for where mod modulo remainder out greater smaller below above other""".split()
)
LIMITS = frozenset("not cannot no never than least most between or either neither".split())
VERBS = frozenset("is are was were equals has have".split())
MONTHS = "january february march april may june july august september october november december".split()
DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
SHORT = {name[:3]: name for name in (*MONTHS, *DAYS)} | {"sept": "september", "tues": "tuesday", "thurs": "thursday"}

HEAD = re.compile(r"(?:\\text\{[^{}]*\}[\s:,]*)+")
TAIL = re.compile(
    r"(?:(?:(?<=[\d)}\w|])|\s)\s*/\s*)?\(?(?:\\frac\{\\text\{\w+\}\}\{\\text\{\w+\}(?:\^\{\d\})?\}|\\text\{[^{}]*\})"
    r"(?:\\text\{[^{}]*\}|\^\{-?\d\}|\\cdot |[\s/.()])*$"
)
LETTER = re.compile(r"(?<=[\d)}])( ?)([A-Za-z])$")
PART = re.compile(r"(\d+\.?\d*)\s*\\text\{(\w+)\}")
COMPOUND = re.compile(rf"(?:{PART.pattern}(?:\s|,|\\text\{{and\}})*)+")
FEET = re.compile(r"(?<=\d)('{1,2}|\")$")
TIME = re.compile(r"(\d{1,2})(?::(\d\d))?(?::00)? ?(?:\\text\{(am|pm|AM|PM)\})?")


class Quantity(NamedTuple):
    """A formula and what it counts.

    Attributes:
      text: the formula, or words where there is nothing else.
      unit: the unit behind it; None for none, or for a noun.
      scale: what "million" and "dozen" multiply it by.
      is_words: `text` is words in lower case.
      noun: what is counted, where that is no unit.
      perhaps: a unit of one letter that may be a variable: `5 m` as a formula, and as five metres.
    """

    text: str
    unit: Unit | None = None
    scale: Fraction = Fraction(1)
    is_words: bool = False
    noun: str = ""
    perhaps: Quantity | None = None


@functools.lru_cache(maxsize=4096)
def quantity(leaf: str) -> Quantity:
    """What a spelled text without commas, relations and brackets around it says."""
    words = WORD.findall(leaf)
    if not words:
        return _bare(leaf)
    if not WORD.sub("", leaf).strip(" .,:"):
        return _words(words)
    head, tail = HEAD.match(leaf), TAIL.search(leaf)
    body = leaf[head.end() if head else 0 : tail.start() if tail else len(leaf)]
    before = WORD.findall(head.group()) if head else []
    unit, before = _currency(before)
    behind = tail.group() if tail else ""
    if (
        WORD.search(body.replace("\\text{degree}", ""))
        or not introduces(before)
        or any(word.lower() in TELLING for word in WORD.findall(behind))
        or not trim(body)
    ):
        return Quantity(_phrase(leaf), is_words=True)
    if "\\text{degree}" in behind and re.search(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])", body):
        body, behind = leaf[head.end() if head else 0 :], ""
    return _counted(trim(body), behind, unit)


def _counted(body: str, behind: str, unit: Unit | None) -> Quantity:
    words = WORD.findall(behind)
    scale = SCALES.get(words[0].lower().removesuffix("s"), 1) if words else 1
    if scale != 1:
        behind = behind.replace(f"\\text{{{words[0]}}}", "", 1)
    unit = unit or unit_of(behind)
    noun = "" if unit else " ".join(WORD.findall(behind)).lower().removesuffix("s")
    return Quantity(body, unit, Fraction(scale), noun=noun)


def _bare(leaf: str) -> Quantity:
    if feet := FEET.search(leaf):
        return Quantity(leaf[: feet.start()], named("foot" if feet.group() == "'" else "inch"))
    letter = LETTER.search(leaf)
    if letter and letter[1] and letter[2] in LETTERS and leaf[: letter.start()].strip(" \\"):
        return Quantity(leaf, perhaps=Quantity(leaf[: letter.start()].strip(), named(letter[2])))
    return Quantity(leaf)


def _currency(words: list[str]) -> tuple[Unit | None, list[str]]:
    """(unit, the other words) of the words in front of a number."""
    money = ("dollar", "euro", "sterling", "yen", "rupee", "Rs", "USD")
    unit = next((named(word) for word in words if word in money), None)
    return unit, [word for word in words if word not in money]


def compound(text: str) -> str | None:
    """`2 hours 30 minutes` as `\\frac{5}{2}` hours, spelled; None for a text that is no sum of units of one kind."""
    if not COMPOUND.fullmatch(text):
        return None
    parts = [(Fraction(number), named(word)) for number, word in PART.findall(text)]
    kinds = {unit.powers if unit else None for _, unit in parts}
    sizes = [unit.factor for _, unit in parts if unit]
    if len(parts) < 2 or len(kinds) > 1 or None in kinds or sizes != sorted(set(sizes), reverse=True):
        return None
    total = sum(number * size for (number, _), size in zip(parts, sizes, strict=True)) / sizes[0]
    return f"{_fraction(Fraction(total))} \\text{{{PART.findall(text)[0][1]}}}"


def _words(words: list[str]) -> Quantity:
    kept = [word for word in words if not is_filler(word)] or words
    value = in_words(kept)
    if value is None and len(kept) > 1 and not any(word.lower() in TELLING for word in kept):
        value = in_words(kept[:1]) if unit_of(f"\\text{{{kept[-1]}}}") else None
        return Quantity(_fraction(value), named(kept[-1])) if value is not None else _spoken(kept)
    return Quantity(_fraction(value)) if value is not None else _spoken(kept)


def _fraction(value: Fraction) -> str:
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}" if value.denominator > 1 else str(value.numerator)


def _spoken(words: list[str]) -> Quantity:
    text = " ".join(words).lower()
    if text == "dne":
        return Quantity("does not exist", is_words=True)
    if len(words) == 1 and len(text) == 1:
        return Quantity(words[0])  # a letter: \\text{B} is B
    return Quantity(" ".join(SHORT.get(word.lower().rstrip("."), word.lower()) for word in words), is_words=True)


def _phrase(leaf: str) -> str:
    """A phrase with formulas in it, ready to be compared letter by letter."""
    kept = WORD.sub(lambda word: "" if is_filler(word[1]) else f" {word[1]} ", leaf)
    return " ".join(kept.split()).lower()


def is_filler(word: str) -> bool:
    """Whether a word in front of an answer says nothing; A with a capital is a name."""
    return word.lower() in FILLERS and word != "A"


def introduces(words: list[str]) -> bool:
    """Whether words in front of an answer only lead to it: "the number of ways is", but not "at least"."""
    says = bool(words) and words[-1].lower() in VERBS and not any(word.lower() in LIMITS for word in words)
    return says or all(map(is_filler, words))


def date(text: str) -> tuple[str, tuple[int, ...]] | None:
    """(month, its numbers in order of size) of a spelled text that is a date, however it is written."""
    words = [word.lower().rstrip(".") for word in WORD.findall(text)]
    words = [SHORT.get(word, word) for word in words if word not in (*FILLERS, "on", "th", "st", "nd", "rd")]
    words = [word for word in words if word not in DAYS]
    rest = WORD.sub(" ", text)
    if len(words) != 1 or words[0] not in MONTHS or re.search(r"[^\d\s,.^{}]", rest):
        return None
    return words[0], tuple(sorted(int(number) for number in re.findall(r"\d+", rest)))


def clock(text: str) -> tuple[int, int, str] | None:
    """(hour, minute, am or pm or nothing) of a spelled text that is a time of day."""
    found = TIME.fullmatch(text)
    if not found or not (found[2] or found[3]):
        return None
    return int(found[1]), int(found[2] or 0), (found[3] or "").lower()
