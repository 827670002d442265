"""Letters of multiple choice, alone or with the text that they stand for."""

from __future__ import annotations

import re
from typing import NamedTuple

LETTER = r"(?:\\text\{([A-J])\}|([A-J]))"
LONE_LETTER = re.compile(rf"(?:\\text\{{(?:[Oo]ption|[Cc]hoice|[Aa]nswer)\}}\s*)?\(?\s*{LETTER}\s*\)?[.:)]?")
LETTER_AND_TEXT = re.compile(
    r"(?:\(\s*(?:\\text\{)?([A-J])\}?\s*\)|\\text\{([A-J])\}[.:)]?(?!\s*\\text)|([A-J])\s*[:.)])"
    r"\s*(?!\\text\{(?:and|or)\})([^\s,;].*)",
    re.S,
)


class Choice(NamedTuple):
    """A letter and the text behind it; both empty where an answer is no choice."""

    letter: str
    text: str


def choice(text: str) -> Choice:
    """`(B) 12` as ("B", "12"), a letter alone as ("B", "")."""
    if found := LONE_LETTER.fullmatch(text):
        return Choice(found[1] or found[2], "")
    found = LETTER_AND_TEXT.fullmatch(text)
    return Choice(found[1] or found[2] or found[3], found[4]) if found else Choice("", "")
