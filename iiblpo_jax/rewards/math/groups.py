"""Braces and brackets in LaTeX: the group a command takes, and where a text may be cut."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

OPENING, CLOSING = "([{", ")]}"
TOKEN = re.compile(r"\\(?:[A-Za-z]+|.)|.", re.S)
ARGUMENT = re.compile(r"\\[A-Za-z]+|\d|[A-Za-z]")


def tokens(text: str) -> Iterator[tuple[int, str]]:
    """(position, token) of every command, escaped character and character."""
    for match in TOKEN.finditer(text):
        yield match.start(), match.group()


def group_end(text: str, start: int, opening: str = "{", closing: str = "}") -> int | None:
    """Where the group that opens at `start` ends (after its bracket); None if it is not closed."""
    depth = 0
    for at, token in tokens(text[start:]):
        depth += (token == opening) - (token == closing)
        if depth == 0:
            return start + at + 1
    return None


def argument(text: str, start: int) -> tuple[str, int] | None:
    """(content, end) of the argument that a command finds at `start`: a group, or one token with its own groups."""
    start += len(text[start:]) - len(text[start:].lstrip())
    if text.startswith("{", start):
        end = group_end(text, start)
        return None if end is None else (text[start + 1 : end - 1], end)
    token = ARGUMENT.match(text, start)
    if token is None:
        return None
    end = token.end()
    while token.group()[0] == "\\" and text.startswith("{", end) and (after := group_end(text, end)):
        end = after
    return text[start:end], end


def rewrite(text: str, command: re.Pattern[str], how: Callable[[re.Match[str], str], str]) -> str:
    """Every command that matches, with the one group it takes, replaced by `how(match, content)`; inner ones first."""
    done, at = [], 0
    for match in command.finditer(text):
        if match.start() < at or not text.startswith("{", match.end()):
            continue
        end = group_end(text, match.end())
        if end is None:
            continue
        content = rewrite(text[match.end() + 1 : end - 1], command, how)
        done += [text[at : match.start()], how(match, content)]
        at = end
    return "".join([*done, text[at:]])


def split(text: str, separators: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """(parts, separators between them), cut where no bracket is open.

    Brackets that do not close as they opened, as those of intervals, count as one kind.
    """
    parts, found, begin, skip, depth = [], [], 0, 0, 0
    for at, token in tokens(text):
        if at < skip:
            continue
        if token in ("\\{", "\\}") or token in OPENING + CLOSING:
            depth = max(0, depth + (1 if token[-1] in OPENING else -1))
        elif depth == 0 and (match := separators.match(text, at)):
            parts.append(text[begin:at])
            found.append(match.group())
            begin = skip = match.end()
    return [*parts, text[begin:]], found


def enclosed(text: str) -> tuple[str, str, str] | None:
    """(opening, content, closing) of a text that stands in one pair of brackets; (a,b] counts as a pair."""
    depth, opened = 0, None
    for at, token in tokens(text):
        is_open = token in ("\\{", "(", "[", "{")
        if at == 0:
            if not is_open:
                return None
            opened = token
        if is_open:
            depth += 1
        elif token in ("\\}", ")", "]", "}"):
            depth -= 1
            if depth == 0:
                whole = at + len(token) == len(text)
                return (opened, text[len(opened) : at], token) if whole and opened else None
    return None


def balanced(text: str) -> bool:
    """Whether braces close as they open."""
    depth = 0
    for _, token in tokens(text):
        depth += (token == "{") - (token == "}")
        if depth < 0:
            return False
    return depth == 0
