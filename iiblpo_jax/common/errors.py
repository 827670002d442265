"""What a user is meant to read when something is wrong: one exception, and warnings of one line."""

from __future__ import annotations

import sys
from collections.abc import Sequence

LONGEST = 2000  # characters of a message; names out of a damaged file may be megabytes long


class InputError(Exception):
    """Bad input from the user: a config key, a path, a data file, a model.

    The message is one line that names the thing and the mend; the command line prints it and exits with status 2. What
    a file put into it is made harmless: line breaks become blanks and control characters are written as escapes.
    """

    def __init__(self, message: str):
        message = " ".join(message.split())
        if len(message) > LONGEST:
            message = f"{message[: LONGEST - 400]} ... {message[-400:]}"
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))

    @classmethod
    def of(cls, messages: Sequence[str]) -> InputError:
        """One error of several messages, numbered; of a single one, just that. Cut where there is no room for more."""
        if len(messages) == 1:
            return cls(messages[0])
        line, head = "", f"{len(messages)} mistakes:"
        for number, message in enumerate(messages, 1):
            more = f" ({number}) {message};"
            if line and len(head) + len(line) + len(more) > LONGEST - 40:
                line += f" and {len(messages) - number + 1} more;"
                break
            line += more
        return cls(f"{head}{line}".removesuffix(";"))


def warn(line: str) -> None:
    """One loud line on stderr, about something that does not end the run."""
    print(f"WARNING: {line}", file=sys.stderr, flush=True)
