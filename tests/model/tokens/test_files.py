import json
import subprocess
import sys

import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.model.files.loading import resolve
from iiblpo_jax.model.tokens import files as tokenizer_files
from iiblpo_jax.model.tokens import tokenizer as tokenizers

HUGE = 2**31


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer.json", {"model": {"vocab": {"a": 0, "b": HUGE}}}),
        ("tokenizer.json", {"model": {"vocab": {"a": -1}}}),
        ("tokenizer.json", {"added_tokens": [{"id": HUGE, "content": "b"}]}),
        ("tokenizer.json", {"added_tokens": [{"content": "b"}]}),
        ("vocab.json", {"a": HUGE}),
        ("vocab.json", {"a": True}),
        ("added_tokens.json", {"a": "1"}),
        ("tokenizer_config.json", {"added_tokens_decoder": {str(HUGE): {"content": "b"}}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"one": {"content": "b"}}}),
    ],
)
def test_impossible_ids_are_refused_before_native_code_sees_them(tmp_path, name, content):
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(InputError, match=rf"{name} has the token id .*; copy the file again"):
        tokenizer_files.check(tmp_path)


def test_ordinary_files_pass(tmp_path):
    tokenizer_files.check(tmp_path)  # nothing there is for others to say
    tokenizer_files.check(resolve("package:iiblpo_jax/data/assets/arithmetic"))
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": [["a", -1.5]]}, "added_tokens": [{"id": 16777215}]}')
    tokenizer_files.check(tmp_path)


def test_code_beside_a_tokenizer_is_not_run(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("")
    remote = {"AutoTokenizer": ["evil.Evil", None]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Evil", "auto_map": remote}))
    (tmp_path / "config.json").write_text('{"model_type": "qwen2"}')
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    load = "from iiblpo_jax.model.tokens.tokenizer import load_directory; load_directory"
    code = f"import pathlib; {load}(pathlib.Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(InputError):
        tokenizers.load_directory(tmp_path)
