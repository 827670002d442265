"""A character tokenizer and writers of the datasets' real file formats."""

import json

import pyarrow
import pyarrow.parquet
import pytest


class Characters:
    """One token a character, its id the code point. `<` and `>` wrap the roles of a chat."""

    def __init__(self, *, chat: bool, bos: bool = False):
        self.chat_template = "{{ messages }}" if chat else None
        self._bos = [1] if bos else []

    def encode(self, text, *, add_special=False):
        return self._bos * add_special + [ord(character) for character in text]

    def decode(self, ids):
        return "".join(map(chr, ids))

    def quote(self, text):
        return text

    def render_chat(self, messages, arguments):
        turns = "".join(f"<{message['role']}>{message['content']}" for message in messages)
        return self.encode(turns + "<assistant>")


@pytest.fixture
def characters():
    return Characters


@pytest.fixture
def write_jsonl(tmp_path):
    def write(name, rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture
def write_parquet(tmp_path):
    def write(name, rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path

    return write
