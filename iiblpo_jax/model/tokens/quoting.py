"""Control tokens that a text only speaks of: a question about `<|im_end|>` must not end its turn.

`quote` puts a stand-in where data hold the text of a control token. Templates carry a stand-in along like any other
word. Where ids are made it becomes the text again, and is read as if the tokenizer had no control tokens; those that a
template wrote itself are tokens as ever.
"""

import re
from collections.abc import Mapping

# Unicode's noncharacters: no text that is meant for others has them. Two enclose a stand-in, two a token that is meant.
QUOTE, MEANT = "\ufdd0{}\ufdd1", "\ufdd2{}\ufdd3"
RESERVED = re.compile("[\ufdd0-\ufdd3]")
REPLACEMENT = "\ufffd"  # what Unicode puts in the place of what is no character
STAND_IN = re.compile(QUOTE.format("([0-9]+)"))


class Controls:
    """The control tokens of a tokenizer.

    Attributes:
      ids: text -> id.
    """

    def __init__(self, ids: Mapping[str, int]):
        self.ids = {text: i for text, i in ids.items() if text}
        self._texts = sorted(self.ids, key=len, reverse=True)  # the longest one first: one may begin another
        self._token = re.compile("|".join(map(re.escape, self._texts)) or "(?!)")

    def quote(self, text: str) -> str:
        """Text out of data, with a stand-in for the text of every control token."""
        number = {text: n for n, text in enumerate(self._texts)} if self._token.search(text) else {}
        return self._token.sub(lambda found: QUOTE.format(number[found[0]]), RESERVED.sub(REPLACEMENT, text))

    def unquote(self, text: str) -> str:
        """The text with the texts that stand-ins stand for."""
        return STAND_IN.sub(lambda found: self._texts[int(found[1])], text)

    def mark(self, text: str) -> str:
        """The text with every control token that is meant, stand-ins are not, as `marked` writes it."""
        return self._token.sub(lambda found: marked(self.ids[found[0]]), text)

    def meant(self, text: str) -> int:
        """How many control tokens a text has, stand-ins not counted."""
        return len(self._token.findall(text))


def marked(i: int) -> str:
    """How the control token of an id is written where no control token's own text is one."""
    return MEANT.format(i)


def is_quoted(text: str) -> bool:
    """Whether a text has stand-ins."""
    return STAND_IN.search(text) is not None
