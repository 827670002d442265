"""Words in answers: which runs of letters are words, which are functions, constants or products of letters."""

from __future__ import annotations

import re

from iiblpo_jax.rewards.math.units import named

GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau phi chi psi omega"
FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln exp gcd lcm max min det pi infty".split()
) | frozenset(GREEK.split())
COMMANDS = {
    **{name: f"\\{name} " for name in FUNCTIONS},
    **dict.fromkeys(("infinity", "inf", "oo"), "\\infty "),
    **{"sqrt": "\\sqrt ", "cbrt": "\\sqrt[3]", "asin": "\\arcsin ", "acos": "\\arccos ", "atan": "\\arctan "},
    "binom": "\\binom",
}
PREFIXES = re.compile(r"(sin|cos|tan|ln|log|pi|sqrt)([A-Za-z])")
SHORT = frozenset(  # two letters that are a word rather than a product, behind a number
    "cm km mm dm nm ft in yd mi kg mg lb oz ml hr am pm hz kb mb gb tb st nd rd th sq cc kw mw".split()
)
KNOWN = frozenset("min deg bed bad bag add face lion".split())  # words whose letters stand close in the alphabet
SMALL = frozenset("or no is of to at by if as on an it so we he pm am".split())
CAPITALS = frozenset("AM PM NO YES TRUE FALSE USD EUR GBP DNE AND OR".split())

ABBREVIATION = re.compile(r"(?<=[A-Za-z])\.(?=\s|$|[A-Za-z,])")
ORDINAL = re.compile(r"(?<=\d)\s*\^?\s*\{?\s*(?:(?:st|nd|rd|th)\b|\\text\{(?:st|nd|rd|th)\})\s*\}?")
WORD = re.compile(r"\\text\{([^{}]*)\}")
INNER = re.compile(r"\\text\{[^{}]*\}|\\[A-Za-z]+|\d+[A-F]+\b|[A-Za-z]+(?:/[A-Za-z]+)*")
OUTER = re.compile(
    r"\\text\{[^{}]*\}|\\(?:begin|end)\{[^{}]*\}(?:\{[clr|]*\})?|\\mathbb\{.\}|\\[A-Za-z]+|(\d\s*)?([A-Za-z]{2,}(?:/[A-Za-z]+)?)"
)


def phrase(content: str, *, operator: bool = False) -> str:
    """The content of a `\\text{}`: its words each in a `\\text{}`, digits and signs as they are."""
    if operator and content.strip() in FUNCTIONS:
        return COMMANDS[content.strip()]
    content = re.sub(r"^\s*([A-J])\s*[.:)](?=\s|$)", r"(\1) ", content)
    content = ABBREVIATION.sub("", content.replace("per cent", "percent"))
    content = re.sub(r"(?<=[A-Za-z])\s*:|[\"“”]|(?<=[A-Za-z])'(?=[A-Za-z])", " ", content)
    content = re.sub(r"(?<=[A-Za-z])-(?=[A-Za-z])", " ", content)
    return f" {INNER.sub(_inner, ORDINAL.sub('', content))} ".replace("{ }", "")


def _inner(found: re.Match[str]) -> str:
    word = found.group()
    if word[0] == "\\" or word[0].isdigit():
        return word
    return COMMANDS[word] if word in ("pi", "infinity") else rf"\text{{{word}}}"


def wordy(text: str) -> str:
    """Runs of letters outside of any `\\text{}` as words, functions or products, whichever they are."""
    if text.count('"') == 2 and not re.search(r'\d\s*"', text):
        text = text.replace('"', " ")
    text = re.sub(r"(?<=[A-Za-z]{3}):", " ", text)
    return OUTER.sub(_outer, ORDINAL.sub("", text))


def _outer(found: re.Match[str]) -> str:
    number, run = found[1] or "", found[2]
    if run is None:
        return found.group()
    if run in COMMANDS and not (number and run in ("min", "sec")):
        return number + COMMANDS[run]
    if (glued := PREFIXES.fullmatch(run)) and (glued[1] != "pi" or number):
        return f"{number}{COMMANDS[glued[1]]}{glued[2]}"
    before = found.string[: found.start(2)]
    behind = bool(number) or (before.endswith(" ") and before.rstrip()[-1:].isalnum()) or before.endswith((")", "}"))
    if number and not number[-1].isspace() and "/" not in run and not named(run):
        return found.group()  # 8cm, but no 8apples: what hangs on a number is no noun
    return f"{number}\\text{{{run}}}" if is_word(run, behind_number=behind) else found.group()


def is_word(run: str, *, behind_number: bool) -> bool:
    """Whether a run of two letters or more is a word; otherwise it is a product, as `ab` and `xyz` are."""
    if len(run) == 2 or "/" in run:
        word = run.lower().split("/")[0]
        return (
            run in CAPITALS
            or (word in SMALL and run.islower())
            or (behind_number and word in SHORT)
            or ("/" in run and len(word) > 1)
        )
    letters = sorted(run.lower())
    in_a_row = len(set(letters)) == len(letters) and ord(letters[-1]) - ord(letters[0]) <= 5
    return run in CAPITALS or run in KNOWN or run.istitle() or not in_a_row
