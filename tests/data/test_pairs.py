import json

import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.pairs import Pair, read_pairs

ROW = {"prompt": "1+1=", "chosen": "2", "rejected": "3"}


def test_pairs_are_read_in_the_order_of_the_file_from_every_format(tmp_path, write_jsonl, write_parquet):
    rows = [ROW, {"Prompt": " 2+2=\n", "chosen": "4 ", "rejected": "4", "why": "a blank"}]
    wanted = (Pair("1+1=", "2", "3"), Pair(" 2+2=\n", "4 ", "4"))  # texts as they are, blanks too
    (tmp_path / "c.json").write_text(json.dumps(rows))
    same_columns = [ROW, {"prompt": " 2+2=\n", "chosen": "4 ", "rejected": "4"}]
    for path in (write_jsonl("a.jsonl", rows), write_parquet("b.parquet", same_columns), tmp_path / "c.json"):
        assert read_pairs(path) == wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": None}, "row 2: no column chosen; it has chosen, prompt, rejected; write prompt, chosen, rejected"),
        ({"prompt": ["a"]}, "row 2: prompt is a list and no text; correct"),
        ({"rejected": ""}, "row 2: rejected has 0 characters"),
        ({"rejected": "2"}, "row 2: chosen and rejected are the same text"),
    ],
)
def test_a_row_that_is_no_pair_is_named(write_jsonl, change, message):
    with pytest.raises(InputError, match=message):
        read_pairs(write_jsonl("pairs.jsonl", [ROW, ROW | change]))


def test_a_file_without_pairs_is_named(tmp_path, write_jsonl):
    (tmp_path / "pairs.txt").write_text("{}")
    for path, message in (
        (tmp_path / "gone.jsonl", "gone.jsonl: no such file of preference pairs"),
        (tmp_path, "no such file"),
        (tmp_path / "pairs.txt", "is none of .parquet, .jsonl, .json; convert"),
        (write_jsonl("empty.jsonl", []), "holds no pairs; write one object of prompt, chosen, rejected"),
    ):
        with pytest.raises(InputError, match=message):
            read_pairs(path)
