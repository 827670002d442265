"""Numbers as exact fractions: decimals, mixed numbers, recurring decimals, powers of ten, numbers in words."""

from __future__ import annotations

import re
from fractions import Fraction

MAX_EXPONENT = 400  # a longer number is left to SymPy, and its memory to the worker
MAX_DIGITS = 600

DECIMAL = r"(?:\d+\.?\d*|\.\d+)"
SIGNED = re.compile(r"\s*((?:[+-]\s*)?)(.*?)\s*", re.S)
PLAIN = re.compile(DECIMAL)
SLASHED = re.compile(rf"\(?({DECIMAL})\)?\s*/\s*\(?(-?{DECIMAL})\)?")
TEX = re.compile(rf"\\frac\{{\s*([+-]?{DECIMAL})\s*\}}\{{\s*([+-]?{DECIMAL})\s*\}}")
MIXED = re.compile(r"(\d+)\s*\\frac\{\s*(\d+)\s*\}\{\s*(\d+)\s*\}|(\d+) (\d+)\s*/\s*(\d+)")
RECURRING = re.compile(r"(\d*)\.(\d*)(?:\\(?:overline|bar|dot)\{(\d+)\}|\((\d+)\))")
DOTTED = re.compile(r"(\d*)\.(\d*)\\dot\{(\d)\}(\d*)\\dot\{(\d)\}")
TRAILED = re.compile(r"(\d*)\.(\d{3,60}?)\s*\\ldots\s*")
SCIENTIFIC = re.compile(
    rf"({DECIMAL})\s*(?:[eE]\s*([+-]?\d+)|\\cdot\s*10\s*\^\s*\{{\s*([+-]?\d+)\s*\}})|10\s*\^\s*\{{\s*([+-]?\d+)\s*\}}"
)

UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"  # noqa: E501
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
WORDS = {word: value for value, word in enumerate(UNITS.split())}
WORDS |= {word: 10 * value for value, word in enumerate(TENS.split(), 2)}
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
PARTS = {
    "half": 2,
    "halves": 2,
    "third": 3,
    "thirds": 3,
    "fourth": 4,
    "quarter": 4,
    "quarters": 4,
    "fifth": 5,
    "fifths": 5,
}


def rational(text: str) -> Fraction | None:
    """The value of a text that is a number, written in one of the ways above; None for anything else."""
    if len(text) > MAX_DIGITS:
        return None
    sign, body = SIGNED.fullmatch(text).groups()  # pyright: ignore[reportOptionalMemberAccess]
    value = _unsigned(body)
    return None if value is None else -value if sign.startswith("-") else value


def _unsigned(body: str) -> Fraction | None:
    if PLAIN.fullmatch(body):
        return Fraction(body)
    for pattern in (SLASHED, TEX):
        if found := pattern.fullmatch(body):
            return Fraction(found[1]) / Fraction(found[2]) if Fraction(found[2]) else None
    if found := MIXED.fullmatch(body):
        whole, top, bottom = (int(group) for group in found.groups() if group is not None)
        return whole + Fraction(top, bottom) if 0 < top < bottom else None
    if found := SCIENTIFIC.fullmatch(body):
        exponent = next(int(group) for group in found.groups()[1:] if group is not None)
        return Fraction(found[1] or 1) * Fraction(10) ** exponent if abs(exponent) <= MAX_EXPONENT else None
    return recurring(body)


def recurring(body: str) -> Fraction | None:
    """`0.1\\overline{6}`, `0.1(6)`, `0.\\dot{1}4285\\dot{7}` and `0.1666...`, whose last block stands there twice."""
    if found := RECURRING.fullmatch(body):
        return _series(found[1], found[2], found[3] or found[4])
    if found := DOTTED.fullmatch(body):
        return _series(found[1], found[2], "".join(found.groups()[2:]))
    if found := TRAILED.fullmatch(body):
        digits = found[2]
        for size in range(1, len(digits) // 2 + 1):
            times = 3 if size == 1 else 2
            block = digits[-size:]
            if digits.endswith(block * times):
                return _series(found[1], digits[:-size], block)
    return None


def _series(whole: str, before: str, block: str) -> Fraction:
    size = 10 ** len(before)
    return Fraction(int((whole or "0") + before), size) + Fraction(int(block), size * (10 ** len(block) - 1))


def in_words(words: list[str]) -> Fraction | None:
    """`twenty one`, `two hundred and five`, `one third`; None for words that are no number."""
    words = [word.lower() for word in words if word.lower() not in ("and", "a", "an")] or [""]
    if len(words) == 2 and words[1] in PARTS and words[0] in WORDS:
        return Fraction(WORDS[words[0]], PARTS[words[1]])
    if words == ["half"]:
        return Fraction(1, 2)
    total, current = 0, None
    for word in words:
        if word in WORDS:
            current = (current or 0) + WORDS[word]
        elif word in SCALES and word != "dozen":
            current = (1 if current is None else current) * SCALES[word]
            if SCALES[word] >= 1000:
                total, current = total + current, 0
        else:
            return None
    return Fraction(total + (current or 0))
