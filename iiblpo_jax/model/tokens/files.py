"""The JSON files of a tokenizer, looked at before a library in native code gets them.

That code makes a table as long as the largest id; an id of 2^31 ends the whole process, and no exception is raised.
"""

import pathlib
from collections.abc import Iterator
from typing import Any

from iiblpo_jax.common import json_input
from iiblpo_jax.common.errors import InputError

LARGEST_ID = (1 << 24) - 1  # sixty times the largest vocabulary in use
NAMES = ("tokenizer.json", "vocab.json", "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json")


def check(directory: pathlib.Path) -> None:
    """InputError for a file of the tokenizer in `directory` that is no JSON object or has an impossible id."""
    for name in NAMES:
        path = directory / name
        if path.is_file():
            for identity in _ids(name, json_input.load_object(path)):
                if type(identity) is not int or not 0 <= identity <= LARGEST_ID:
                    raise InputError(f"{path} has the token id {repr(identity)[:80]}; copy the file again")


def _ids(name: str, content: dict[str, Any]) -> Iterator[Any]:
    if name in ("vocab.json", "added_tokens.json"):
        yield from content.values()
    elif name == "tokenizer.json":
        model, added = content.get("model"), content.get("added_tokens")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        yield from vocabulary.values() if isinstance(vocabulary, dict) else ()
        yield from (t.get("id") for t in added if isinstance(t, dict)) if isinstance(added, list) else ()
    elif name == "tokenizer_config.json" and isinstance(decoder := content.get("added_tokens_decoder"), dict):
        yield from (int(key) if key.isdecimal() and len(key) < 20 else key for key in decoder)
