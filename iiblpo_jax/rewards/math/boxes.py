"""Where the final answer stands in a response: the last box that holds something. Linear in the response."""

from __future__ import annotations

import re

MAX_CHARS = 1024  # no gold answer of the supported datasets is half as long; a longer box is not an answer
MAX_BOXES = 8  # how many unclosed or empty boxes are skipped, from the end, before giving up
BOXES = ("\\boxed", "\\fbox", "\\framebox")

BARE = re.compile(r"\\[A-Za-z]|\d|[A-Za-z](?![A-Za-z])")  # how an answer without braces may begin
TOKEN = re.compile(r"\\.|.", re.S)  # an escaped character, brace or not, is no brace
DEPTHS = {"{": 1, "}": -1}
ENDS = ("$", "\\)", "\\]")  # of a formula
TRAILING = ".,;:"
MAX_BETWEEN = 60  # characters
BETWEEN = re.compile(r"\\text\s*\{\s*(and|or)\s*\}|(,)|\\q?quad|\\[()\[\]]|\$")


def last_boxed(text: str) -> str | None:
    """Content of the last closed box that is not empty, nested braces included.

    A box is `\\boxed{...}`, `\\fbox{...}` or `\\framebox{...}`, with or without blanks before the brace, or one of
    these before a formula without blanks: `\\boxed 5`, `\\boxed\\frac{1}{2}`. Escaped braces do not count as braces.
    An empty box is skipped: responses repeat the instruction to "put the answer within \\boxed{}". Boxes that nothing
    but commas, "and" or "or" stands between are one, `\\boxed{1}, \\boxed{2}` is `1, 2`. None if there is no box of at
    most `MAX_CHARS` characters among the last `MAX_BOXES`.
    """
    parts: list[str] = []
    end, follows = len(text), len(text)
    for _ in range(MAX_BOXES):
        start = max(text.rfind(box, 0, end) for box in BOXES)
        found = _content(text, start) if start >= 0 else None
        joined = found is not None and (not parts or _joined(text[found[1] : follows]))
        if start < 0 or (parts and not joined):
            break
        if found and joined and found[0].strip():
            parts.insert(0, found[0].strip())
            follows = start
        end = start
    return ", ".join(parts if len(set(parts)) > 1 else parts[:1])[:MAX_CHARS] or None


def _joined(between: str) -> bool:
    """Whether two boxes with this between them are one answer: a comma or a word, and signs of formulas."""
    words = BETWEEN.sub(lambda sign: f" {sign[1] or sign[2] or ''} ", between[: MAX_BETWEEN + 1]).split()
    return len(between) <= MAX_BETWEEN and bool(words) and set(words) <= {",", "and", "or"}


def _content(text: str, start: int) -> tuple[str, int] | None:
    """(content, end) of the box that starts at `start`, or None if it is not closed within MAX_CHARS."""
    name_end = start + next(len(box) for box in BOXES if text.startswith(box, start))
    window = text[name_end : name_end + 2 * MAX_CHARS]
    rest = window.lstrip()
    begin = name_end + len(window) - len(rest)
    if rest.startswith("{"):
        content, end = _braced(rest), begin + 2
    else:
        content, end = _bare(rest, apart=len(rest) < len(window)), begin
    return None if content is None or len(content) > MAX_CHARS else (content, end + len(content))


def _bare(rest: str, apart: bool) -> str | None:
    """What stands in a box without braces: all up to a blank or the end of the formula, braces included.

    Only what looks like a formula, so that "an answer in \\boxed form" is none.
    """
    if not BARE.match(rest.lstrip("+-")) or (rest[0].isalpha() and not apart):
        return None
    depth, end = 0, len(rest)
    for token in TOKEN.finditer(rest):
        depth += DEPTHS.get(token.group(), 0)
        if depth < 0 or (depth == 0 and (token.group() in ENDS or token.group().isspace())):
            end = token.start()
            break
    return rest[:end].rstrip(TRAILING) if depth <= 0 else None


def _braced(text: str) -> str | None:
    """Content of the group that `text` starts with, or None where it is not closed."""
    depth = 0
    for token in TOKEN.finditer(text):
        depth += DEPTHS.get(token.group(), 0)
        if depth == 0:
            return text[1 : token.start()]
    return None
