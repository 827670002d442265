"""The file of an evaluation's samples: what comes back, what does not count, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from iiblpo_jax import InputError
from iiblpo_jax.data.prompts import Prompt
from iiblpo_jax.results.attempts import AttemptFile, attempts_of
from iiblpo_jax.rewards.verifier import Problem

PROTOCOL = {"policy": {"step": 3}, "seed": 1}


def prompts(*questions):
    return [
        Prompt(problem=Problem(id=f"p/{i}", question=question, answer=str(i), task="p"), tokens=[i], answer=[], cue=[])
        for i, question in enumerate(questions)
    ]


def attempts(seed, samples=2):
    random = np.random.default_rng(seed)
    tokens = [random.integers(0, 99, length).tolist() for length in random.integers(0, 700, samples)]
    texts = [f"line\n{length}\u2028\x85 '\"\\ é 𝔸" for length in map(len, tokens)]
    return attempts_of(texts, tokens, random.random(samples).astype(np.float32), random.random(samples) < 0.5)


def open_file(folder, *, asked=("a", "b", "c"), protocol=PROTOCOL, task="gym:x"):
    return AttemptFile(folder, task, protocol, prompts(*asked))


@pytest.fixture
def written(tmp_path):
    """Problems 2 and 0 of three: (path, what was written)."""
    with open_file(tmp_path) as file:
        assert file.done == {}
        expected = {2: attempts(2), 0: attempts(0)}
        for index, one in expected.items():
            file.add(index, one, ["7", None])
        assert file.done == expected
    return file.path, expected


def test_attempts_are_what_the_summary_reads():
    one = attempts_of(["x"] * 20, [list(range(600))] * 20, np.full(20, 0.1, np.float32), np.arange(20) == 3)
    assert one.lengths == [600] * 20 and one.rewards == [0.1] * 20 and one.truncated.index(True) == 3
    assert one.heads == [list(range(512))] * 16


def test_they_come_back_as_they_were(written, tmp_path):
    path, expected = written
    with open_file(tmp_path) as file:
        assert file.path == path and file.done == expected
        assert np.float32(file.done[0].rewards[0]) == np.float32(expected[0].rewards[0])
        file.add(1, attempts(1), [])
    with open_file(tmp_path) as file:
        assert file.done == expected | {1: attempts(1)}


def test_a_line_says_what_became_of_a_problem(written):
    path, expected = written
    first, *rows = map(json.loads, path.read_text().split("\n")[:-1])
    assert first == {"protocol": PROTOCOL} and path.name.startswith("gym-x-")
    row, one = rows[1], expected[0]
    assert (row["problem"], row["question"], row["gold"], row["samples"]) == ("p/0", "a", "0", 2)
    assert row["right"] == sum(reward >= 0.999 for reward in one.rewards) and row["tokens"] == sum(one.lengths)
    assert row["answers"] == ["7", None] and row["texts"] == one.texts


@pytest.mark.parametrize("torn", [b'{"problem": "p/1", "ind', '{"question": "é'.encode()[:-1], b"\x00" * 40])
def test_what_a_kill_left_of_a_line_is_cut_off(written, tmp_path, torn):
    path, expected = written
    before = path.read_bytes()
    path.write_bytes(before + torn)
    with open_file(tmp_path) as file:
        assert file.done == expected and path.read_bytes() == before
        file.add(1, attempts(1), [])
    with open_file(tmp_path) as file:
        assert sorted(file.done) == [0, 1, 2]


def test_a_kill_before_the_first_line_was_whole(tmp_path):
    with open_file(tmp_path) as file:
        whole = file.path.read_bytes()
    file.path.write_bytes(whole[:5])
    with open_file(tmp_path) as again:
        assert again.done == {} and again.path.read_bytes() == whole


def test_another_protocol_or_task_has_another_file(written, tmp_path):
    for change in ({"protocol": PROTOCOL | {"seed": 2}}, {"task": "y"}):
        with open_file(tmp_path, **change) as file:
            assert file.done == {} and file.path != written[0]


def test_a_problem_that_is_asked_otherwise_does_not_count(written, tmp_path):
    _, expected = written
    with open_file(tmp_path, asked=("a", "b", "other")) as file:
        assert file.done == {0: expected[0]}
    with open_file(tmp_path, asked=("a",)) as file:  # fewer problems
        assert file.done == {0: expected[0]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"jsonl:2 is not JSON .*; delete the line"),
        ("[]", r"jsonl:2 is not what was written there; delete the line"),
        ('{"index": 0, "prompt": "x", "texts": []}', r"jsonl:2 is not what was written there"),
    ],
)
def test_a_damaged_line_is_named(written, tmp_path, line, message):
    path, _ = written
    first, rest = path.read_text().split("\n", 1)
    path.write_text(f"{first}\n{line}\n{rest}")
    with pytest.raises(InputError, match=message):
        open_file(tmp_path)


def test_a_file_that_begins_otherwise_is_refused(written, tmp_path):
    path, _ = written
    path.write_text("{}\n")
    with pytest.raises(InputError, match="does not begin with its protocol; delete it"):
        open_file(tmp_path)


def test_two_evaluations_do_not_write_one_file(written, tmp_path):
    with open_file(tmp_path), pytest.raises(InputError, match=r"another evaluation is writing .*; wait for it"):
        open_file(tmp_path)
    open_file(tmp_path).close()


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "eval").write_text("")
    with pytest.raises(InputError, match=r"cannot be written .*; make room"):
        open_file(tmp_path / "eval")


def test_a_full_disk(tmp_path):
    file = open_file(tmp_path)
    file.close()
    with Path("/dev/full").open("ab", buffering=0) as full, file:
        file._file = full
        with pytest.raises(InputError, match=r"cannot be written \(No space left on device\); make room"):
            file.add(0, attempts(0), [])
