import pytest
from ml_collections import ConfigDict

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.registry import NAMES, make_task, make_tasks


def test_names():
    assert set(NAMES) == {
        "arithmetic",
        "countdown",
        "sums",
        "gym:<name>",
        "gsm8k",
        "math",
        "dapo_math",
        "math500",
        "aime24",
        "aime25",
        "olympiad",
    }


def test_generated_tasks_take_the_seed_and_options():
    assert make_task("arithmetic", seed=1).train != make_task("arithmetic", seed=2).train
    assert {
        problem.metadata["terms"] for problem in make_task("arithmetic", options={"k_min": 5, "k_max": 5}).train
    } == {5}
    assert len(make_task("sums", options={"heldout_size": 10}).heldout) == 10


def test_file_tasks_take_the_directory(tmp_path, write_jsonl):
    for name in ("math", "math500", "aime24", "aime25", "dapo_math", "olympiad"):
        write_jsonl(f"{name}/test.jsonl", [{"problem": "1+1?", "answer": "2"}])
        task = make_task(name, data_dir=tmp_path / name)
        assert (task.name, [problem.answer for problem in task.heldout]) == (name, ["2"])
    write_jsonl("gsm8k/test.jsonl", [{"question": "1+1?", "answer": "#### 2"}])
    assert make_task("gsm8k", data_dir=tmp_path / "gsm8k").heldout[0].answer == "2"


def test_gym():
    pytest.importorskip("reasoning_gym")
    assert make_task("gym:chain_sum", options={"train_size": 3, "heldout_size": 1}).name == "gym:chain_sum"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "arithmetics"}, "unknown task 'arithmetics'; choose one of arithmetic, countdown, sums"),
        (
            {"name": "arithmetic", "options": {"kmax": 3}},
            "no option kmax; it has heldout_size, k_max, k_min, train_size",
        ),
        ({"name": "gsm8k", "options": {"k_max": 3}}, "no option k_max; it has files_glob, heldout_size, skip_bad_gold"),
        ({"name": "gym:chain_sum", "options": {"size": 3}}, "size is no option; use data.seed, train_size"),
        ({"name": "math"}, "set task.data_dir"),
        ({"name": "math500", "data_dir": "/does/not/exist"}, "/does/not/exist does not exist"),
    ],
)
def test_bad_requests(arguments, message):
    with pytest.raises(InputError, match=message):
        make_task(**arguments)


def section(**changes):
    return ConfigDict({"name": "arithmetic", "data_dir": "", "options": {}, "mix": {}} | changes)


def test_the_one_task_of_a_config():
    ((task, weight),) = make_tasks(section(options={"train_size": 7}), seed=3)
    assert (task.name, len(task.train), weight) == ("arithmetic", 7, 1.0)
    assert task.train == make_task("arithmetic", seed=3, options={"train_size": 7}).train


def test_a_mix_has_folders_and_options_by_task_name(tmp_path, write_jsonl):
    for name in ("math", "dapo_math"):
        write_jsonl(f"{name}/train.jsonl", [{"problem": f"{name}{i}", "answer": "2"} for i in range(10)])
    mix = section(mix={"math": 1, "dapo_math": 2}, data_dir=str(tmp_path), options={"math": {"heldout_size": 0}})
    tasks = {task.name: (len(task.train), weight) for task, weight in make_tasks(mix, seed=0)}
    assert tasks == {"math": (10, 1.0), "dapo_math": (9, 2.0)}
