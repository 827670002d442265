"""GSM8K from its three homes: the TFDS class, Hugging Face parquet, the original JSON Lines."""

import shutil

import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.gsm8k import make_gsm8k

TRAIN = [
    {"question": "48 and half?", "answer": "48/2 = <<48/2=24>>24\n48+24 = <<48+24=72>>72\n#### 72"},
    {"question": "A dear one?", "answer": "It is $1,000.\n#### 1,000"},
]
TEST = [{"question": "None left?", "answer": "0\n#### 0"}]


def check(task):
    assert [(problem.question, problem.answer) for problem in task.train] == [
        ("48 and half?", "72"),
        ("A dear one?", "1000"),
    ]
    assert [(problem.question, problem.answer) for problem in task.heldout] == [("None left?", "0")]
    assert task.train[0].rationale == "48/2 = 24\n48+24 = 72\n\nThe final answer is \\boxed{72}"


def test_json_lines(tmp_path, write_jsonl):
    write_jsonl("train.jsonl", TRAIN)
    write_jsonl("test.jsonl", TEST)
    check(make_gsm8k(data_dir=tmp_path))


def test_hugging_face_parquet(tmp_path, write_parquet):
    write_parquet("main/train-00000-of-00001.parquet", TRAIN)
    write_parquet("main/test-00000-of-00001.parquet", TEST)
    check(make_gsm8k(data_dir=str(tmp_path)))


@pytest.fixture
def prepare(tmp_path, write_jsonl, monkeypatch):
    """Lets the real TFDS builder write a data_dir from local JSON Lines in place of its download."""
    gsm8k = pytest.importorskip("tensorflow_datasets.text.gsm8k.gsm8k")

    def write(**rows):
        files = {split: write_jsonl(f"source/{split}.jsonl", entries) for split, entries in rows.items()}
        monkeypatch.setattr(
            gsm8k.Gsm8k,
            "_split_generators",
            lambda self, manager: {split: self._generate_examples(path) for split, path in files.items()},
        )
        gsm8k.Gsm8k(data_dir=str(tmp_path / "tfds"), file_format="array_record").download_and_prepare()
        shutil.rmtree(tmp_path / "source")
        return tmp_path / "tfds"

    return write


def in_any_order(task):
    return sorted((problem.question, problem.answer, problem.rationale) for problem in task.train)


def test_tfds_array_record(prepare, tmp_path):
    root = prepare(train=TRAIN, test=TEST)
    task = make_gsm8k(data_dir=root)
    # TFDS shuffles as it writes.
    assert in_any_order(task) == [
        ("48 and half?", "72", "48/2 = 24\n48+24 = 72\n\nThe final answer is \\boxed{72}"),
        ("A dear one?", "1000", "It is $1,000.\n\nThe final answer is \\boxed{1000}"),
    ]
    assert [problem.answer for problem in task.heldout] == ["0"]
    for below in ("gsm8k", "gsm8k/1.0.0"):
        assert in_any_order(make_gsm8k(data_dir=root / below)) == in_any_order(task)


def test_tfds_bad_gold(prepare):
    root = prepare(train=[*TRAIN, {"question": "?", "answer": "so\n#### many"}], test=TEST)
    with pytest.raises(InputError, match=r"train row \d: gold answer 'many' does not parse as a number"):
        make_gsm8k(data_dir=root)
    assert len(make_gsm8k(data_dir=root, skip_bad_gold=True).train) == 2


def test_tfds_in_a_format_that_needs_tensorflow(prepare):
    root = prepare(train=TRAIN, test=TEST)
    info = root / "gsm8k/1.0.0/dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(InputError, match=r"prepare it again with .*array_record"):
        make_gsm8k(data_dir=root)
