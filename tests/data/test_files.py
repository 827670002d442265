import json

import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data import files


def test_files_are_sorted_into_splits_by_their_paths(tmp_path):
    names = ["train-00000-of-00001.parquet", "main/test-00000.parquet", "latest.jsonl", "val/a.json", "README.md"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = files.dataset_files("math", tmp_path)
    relative = {split: [str(path.relative_to(tmp_path)) for path in paths] for split, paths in found.items()}
    # "latest" contains "test" but is another word
    assert relative == {
        "train": ["latest.jsonl", "train-00000-of-00001.parquet"],
        "heldout": ["main/test-00000.parquet", "val/a.json"],
    }


def test_a_directory_above_named_test_does_not_count(tmp_path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "train.jsonl").touch()
    assert files.dataset_files("math", tmp_path / "test")["train"] == [tmp_path / "test" / "train.jsonl"]


def test_one_file_and_a_pattern(tmp_path):
    for name in ("a.jsonl", "b.jsonl", "test.jsonl"):
        (tmp_path / name).touch()
    assert files.dataset_files("math", tmp_path / "b.jsonl") == {"train": [tmp_path / "b.jsonl"], "heldout": []}
    assert files.dataset_files("math", tmp_path / "test.jsonl") == {"train": [], "heldout": [tmp_path / "test.jsonl"]}
    assert files.dataset_files("math", tmp_path, pattern="a*")["train"] == [tmp_path / "a.jsonl"]


@pytest.mark.parametrize(
    ("data_dir", "message"),
    [
        (None, "set task.data_dir"),
        ("", "set task.data_dir"),
        ("missing", "does not exist; download the dataset"),
        ("notes.txt", "convert it"),
        (".", "no \\*.parquet, \\*.jsonl, \\*.json under"),
    ],
)
def test_nothing_to_read(tmp_path, data_dir, message):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=message):
        files.dataset_files("math", data_dir and tmp_path / data_dir)


def test_the_three_formats_give_the_same_rows(tmp_path, write_jsonl, write_parquet):
    rows = [{"Problem": "1+1", "answer": "2"}, {"Problem": "1+2", "answer": "3"}]
    (tmp_path / "c.json").write_text(json.dumps(rows))
    paths = [write_jsonl("a.jsonl", rows), write_parquet("b.parquet", rows), tmp_path / "c.json"]
    for path in paths:
        assert list(files.read_rows(path)) == [
            (f"{path} row 1", {"problem": "1+1", "answer": "2"}),
            (f"{path} row 2", {"problem": "1+2", "answer": "3"}),
        ]
    assert next(files.read_rows(paths[1], columns={"answer"}))[1] == {"problem": None, "answer": "2"}


def test_blank_lines_keep_the_row_numbers(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert [place for place, _ in files.read_rows(path)] == [f"{path} row 1", f"{path} row 3"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "a.jsonl row 2 is not JSON"),
        ("a.jsonl", b'{"a": "\xff"}\n', "a.jsonl row 1 is not JSON"),
        ("a.jsonl", b"[1]\n", "row 1 is not an object"),
        ("a.jsonl", b'{"a": "\\ud800"}\n', "a.jsonl row 1 is not JSON"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "a.jsonl row 1 is nested"),
        ("a.json", b"{", "JSON Lines belong in a .jsonl file"),
        ("a.parquet", b"PAR1 cut short", "not a readable parquet file"),
        ("a.parquet", b"", "not a readable parquet file"),
    ],
)
def test_damaged_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        list(files.read_rows(tmp_path / name))


def test_a_row_and_a_file_have_a_largest_size(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_ROW", 20)
    monkeypatch.setattr(files, "MAX_JSON", 20)
    line = '{"a": "12345678901"}'
    for name in ("a.jsonl", "a.json"):
        (tmp_path / name).write_text(line)
        assert len(list(files.read_rows(tmp_path / name))) == 1
        (tmp_path / name).write_text(line.replace("1", "11", 1))
    with pytest.raises(InputError, match=r"a\.jsonl row 1 is longer than 20 bytes; correct or remove"):
        list(files.read_rows(tmp_path / "a.jsonl"))
    with pytest.raises(InputError, match=r"a\.json has 21 bytes, the limit is 20"):
        list(files.read_rows(tmp_path / "a.json"))


def test_a_parquet_file_that_explodes(tmp_path, write_parquet, monkeypatch):
    path = write_parquet("a.parquet", [{"answer": "7" * 1_000_000}])
    assert path.stat().st_size < 200_000  # the same digit compresses well
    monkeypatch.setattr(files, "MAX_ROW", 100_000)
    with pytest.raises(InputError, match=r"1 rows of 10\d* bytes; download it again"):
        list(files.read_rows(path))
