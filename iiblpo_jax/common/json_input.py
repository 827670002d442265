"""JSON that somebody else wrote: as data, within bounds, and refused in one line."""

import json
import pathlib
from typing import Any

from iiblpo_jax.common.errors import InputError

MAX_BYTES = 256 << 20  # of a whole file; the largest tokenizer.json in use has 20 MB
MAX_DEPTH = 64  # of lists and objects inside one another


def load(path: pathlib.Path, *, mend: str = "copy the file again", limit: int = MAX_BYTES) -> Any:
    """What a UTF-8 JSON file holds.

    Raises:
      InputError: unreadable, more than `limit` bytes, or see `parse`. A missing file is a FileNotFoundError.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            text = file.read() if size <= limit else b""
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); {mend}") from error
    if size > limit:
        raise InputError(f"{path} has {size} bytes, the limit is {limit}; {mend}")
    return parse(text, str(path), mend=mend)


def load_object(path: pathlib.Path, *, mend: str = "copy the file again", limit: int = MAX_BYTES) -> dict[str, Any]:
    """`load`, and an InputError if the file holds anything but an object or is not there."""
    try:
        value = load(path, mend=mend, limit=limit)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; {mend}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} is not a JSON object; {mend}")
    return value


def parse(text: bytes, source: str, *, mend: str) -> Any:
    """The value of a JSON text; `source` and `mend` are for the message.

    Raises:
      InputError: not JSON in UTF-8, nested more than MAX_DEPTH deep, or a string that is no Unicode (half a surrogate
        pair).
    """
    try:
        value = json.loads(text.decode("utf-8"))
        # Both checks cost a second look at the value, so they are made only where the text gives a reason.
        if text.count(b"[") + text.count(b"{") > MAX_DEPTH and _depth(value) > MAX_DEPTH:
            raise RecursionError
        if b"\\ud" in text or b"\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise InputError(f"{source} is nested more than {MAX_DEPTH} deep; {mend}") from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError, UnicodeEncodeError; a number of 4,300 digits
        raise InputError(f"{source} is not JSON ({str(error)[:200]}); {mend}") from error
    return value


def _depth(value: Any) -> int:
    """Levels of lists and objects, 0 for a scalar; without recursion."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [x for item in level for x in (item.values() if isinstance(item, dict) else item)]
    return depth
