import json

import pytest

from iiblpo_jax.common import json_input
from iiblpo_jax.common.errors import LONGEST, InputError


def test_what_is_written_comes_back(tmp_path):
    value = {"a": [1, 2.5, None, "é\U0001f600"], "b": {"c": True}}
    (tmp_path / "a.json").write_text(json.dumps(value))
    assert json_input.load(tmp_path / "a.json") == value
    assert json_input.load_object(tmp_path / "a.json") == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "is not JSON"),
        (b"", "is not JSON"),
        (b'"\xff"', "is not JSON"),
        (b'["\\ud800"]', "is not JSON .*surrogates"),
        (b"1" * 5000, "is not JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "is nested more than 64 deep"),
        (b"[" * 65 + b"]" * 65, "is nested more than 64 deep"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "is nested more than 64 deep"),
        (b"[1]", "is not a JSON object"),
    ],
)
def test_refusals_are_one_line(tmp_path, text, message):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(InputError, match=rf"a\.json {message}.*; copy the file again") as error:
        json_input.load_object(tmp_path / "a.json")
    assert "\n" not in str(error.value)


def test_limits_are_not_off_by_one(tmp_path):
    assert json_input.parse(b"[" * 64 + b"]" * 64, "x", mend="y")
    assert json_input.parse(b"[" + b"[]," * 500 + b"[]]", "x", mend="y") == [[]] * 501  # wide is not deep
    (tmp_path / "a.json").write_text('"12345678"')
    assert json_input.load(tmp_path / "a.json", limit=10) == "12345678"
    with pytest.raises(InputError, match="10 bytes, the limit is 9"):
        json_input.load(tmp_path / "a.json", limit=9)


def test_paired_surrogates_are_a_character():
    assert json_input.parse(b'"\\ud83d\\ude00"', "x", mend="y") == "\U0001f600"


def test_missing_files_and_directories(tmp_path):
    with pytest.raises(FileNotFoundError):
        json_input.load(tmp_path / "a.json")
    with pytest.raises(InputError, match=r"a\.json does not exist"):
        json_input.load_object(tmp_path / "a.json")
    with pytest.raises(InputError, match="cannot be read"):
        json_input.load(tmp_path)


def test_a_message_is_one_printable_line_of_bounded_length():
    assert str(InputError("a\nb\x1b[2J\x00\u202e\ud800é")) == "a b\\x1b[2J\\x00\\u202e\\ud800é"
    assert len(str(InputError("x" * 10_000_000 + "; mend"))) < LONGEST + 10
    assert str(InputError("x" * 10_000_000 + "; mend")).endswith("; mend")
