import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.competition import make_competition
from iiblpo_jax.rewards.math import Math


def rows(count, *, start=0):
    return [
        {"problem": f"What is {i} + 1?", "solution": f"It is $\\boxed{{{i + 1}}}$."}
        for i in range(start, start + count)
    ]


def answers(problems):
    return [problem.answer for problem in problems]


def test_hugging_face_layout(tmp_path, write_parquet):
    write_parquet("algebra/train-00000-of-00001.parquet", rows(3))
    write_parquet("geometry/train-00000-of-00001.parquet", rows(2, start=10))
    write_parquet("algebra/test-00000-of-00001.parquet", rows(2, start=20))
    task = make_competition("math", data_dir=tmp_path)
    assert answers(task.train) == ["1", "2", "3", "11", "12"]
    assert answers(task.heldout) == ["21", "22"]
    assert len({problem.id for problem in (*task.train, *task.heldout)}) == 7
    assert (task.verifier, task.marker, task.chat) == (Math(), "\\boxed{", True)


def test_repeated_questions_count_once_and_heldout_ones_are_not_trained_on(tmp_path, write_jsonl):
    write_jsonl("train.jsonl", rows(5) + rows(5))
    write_jsonl("test.jsonl", rows(2, start=3))
    task = make_competition("math", data_dir=tmp_path)
    assert answers(task.train) == ["1", "2", "3"]
    assert answers(task.heldout) == ["4", "5"]


def test_without_a_test_file_a_tenth_at_most_is_held_out(tmp_path, write_jsonl):
    path = write_jsonl(
        "dapo-math-17k.jsonl", [{"prompt": f"{i}?", "reward_model": {"ground_truth": str(i)}} for i in range(50)]
    )
    task = make_competition("dapo_math", data_dir=path)
    assert len(task.heldout) == 5
    assert sorted(map(int, answers(task.train) + answers(task.heldout))) == list(range(50))
    assert len(make_competition("dapo_math", data_dir=path, heldout_size=2).heldout) == 2
    assert make_competition("dapo_math", data_dir=path).heldout == task.heldout


def test_evaluation_tasks_hold_everything_out(tmp_path, write_parquet):
    write_parquet("data/train-00000-of-00001.parquet", [{"problem": "P", "answer": "7"}])
    task = make_competition("aime24", data_dir=tmp_path)
    assert (answers(task.train), answers(task.heldout)) == ([], ["7"])


def test_olympiad_bench_prefers_the_english_text_only_mathematics(tmp_path, write_parquet):
    write_parquet("OE_MM_physics_en_COMP/a.parquet", [{"question": "with a figure", "final_answer": ["1"]}])
    write_parquet("OE_TO_maths_en_COMP/a.parquet", [{"question": "text", "final_answer": ["2"]}])
    assert answers(make_competition("olympiad", data_dir=tmp_path).heldout) == ["2"]
    chosen = make_competition("olympiad", data_dir=tmp_path, files_glob="OE_MM_physics*/*.parquet")
    assert answers(chosen.heldout) == ["1"]


def test_bad_rows_stop_or_are_skipped(tmp_path, write_jsonl):
    path = write_jsonl("train.jsonl", [*rows(2), {"problem": "P", "solution": "none"}])
    with pytest.raises(InputError, match=r"train.jsonl row 3: the solution has no .* skip_bad_gold=True"):
        make_competition("math", data_dir=tmp_path)
    assert answers(make_competition("math", data_dir=path, skip_bad_gold=True).train) == ["1", "2"]


def test_an_empty_dataset(tmp_path, write_jsonl):
    write_jsonl("train.jsonl", [])
    with pytest.raises(InputError, match="hold no rows"):
        make_competition("math", data_dir=tmp_path)


def test_a_missing_column_in_parquet_names_what_is_there(tmp_path, write_parquet):
    """Those that are not read too: here the answer is there, under a name that means nothing to us the question."""
    write_parquet("train.parquet", [{"text": "P", "label": "1"}])
    with pytest.raises(InputError, match="row 1: no column problem or question or prompt; it has label, text"):
        make_competition("math", data_dir=tmp_path)
    write_parquet("train.parquet", [{"Text": "P", "answer": "1", "source": "s"}])
    with pytest.raises(InputError, match="no column problem or question or prompt; it has answer, source, text; "):
        make_competition("math", data_dir=tmp_path)


def test_rows_that_say_they_have_no_answer_are_left_out(tmp_path, write_jsonl, caplog):
    """NuminaMath-1.5: no option is needed, and the count is said."""
    write_jsonl("train.jsonl", [*rows(2), {"problem": "P", "answer": "proof"}, {"problem": "Q", "answer": "notfound"}])
    with caplog.at_level("WARNING"):
        assert answers(make_competition("math", data_dir=tmp_path).train) == ["1", "2"]
    assert "2 rows left out: they say that they have no answer" in caplog.text


def test_descriptions_beside_rows_are_no_rows(tmp_path, write_jsonl):
    write_jsonl("data/train.jsonl", rows(2))
    for name in ("dataset_infos.json", "data/dataset_info.json", "data/state.json", "data/._train.jsonl"):
        (tmp_path / name).write_text('{"default": {"features": {}}}')
    assert answers(make_competition("math", data_dir=tmp_path).train) == ["1", "2"]


def test_rows_of_verl_are_told_apart_by_what_they_ask(tmp_path, write_parquet):
    """Their questions lie inside a struct."""
    write_parquet(
        "train.parquet",
        [{"extra_info": {"question": f"{i}?", "answer": f"#### {i}"}, "ability": "math"} for i in (3, 4, 3)],
    )
    assert answers(make_competition("gsm8k", data_dir=tmp_path).train) == ["3", "4"]
