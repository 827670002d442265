from typing import get_args, get_type_hints

import pytest
from ml_collections import ConfigDict

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.knobs import KINDS
from iiblpo_jax.data import competition, gym, registry
from iiblpo_jax.data.registry import NAMES, make_task, make_tasks, mistakes
from iiblpo_jax.defaults import default_config


def test_names():
    assert set(NAMES) == {
        "arithmetic",
        "calculator",
        "countdown",
        "search",
        "sums",
        "gym:<name>",
        "gsm8k",
        "math",
        "dapo_math",
        "math500",
        "aime24",
        "aime25",
        "olympiad",
        "jsonl",
        "jsonl:<name>",
        "own",
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
        (
            {"name": "arithmetics"},
            r"unknown task 'arithmetics' \(did you mean arithmetic\?\); choose one of arithmetic, ",
        ),
        (
            {"name": "elephant"},
            r"unknown task 'elephant'; choose one of arithmetic, calculator, countdown, search, sums",
        ),
        (
            {"name": "arithmetic", "options": {"kmax": 3}},
            r"no option kmax \(did you mean k_max\?\); it has heldout_size, k_max, k_min, train_size",
        ),
        ({"name": "gsm8k", "options": {"k_max": 3}}, "no option k_max; it has files_glob, heldout_size, skip_bad_gold"),
        ({"name": "gsm8k", "options": {"seed": 3}}, r"'gsm8k': seed is no option; use data\.seed"),
        ({"name": "gym:chain_sum", "options": {"size": 3}}, "size is no option; use train_size and heldout_size"),
        ({"name": "math"}, "set task.data_dir"),
        ({"name": "math500", "data_dir": "/does/not/exist"}, "/does/not/exist does not exist"),
    ],
)
def test_bad_requests(arguments, message):
    with pytest.raises(InputError, match=message):
        make_task(**arguments)


# Of every task, an option of another kind, and numbers that no machine has room for or that leave nothing.
WRONG = {
    "arithmetic": [{"k_max": 41}, {"k_max": "5"}, {"k_min": 1.5}, {"train_size": 10**12}, {"heldout_size": 0}],
    "countdown": [{"k_max": 20}, {"k_min": True}, {"train_size": -1}, {"heldout_size": 10**9}, {"k_max": None}],
    "sums": [{"high": 10**9}, {"low": -1}, {"low": 9, "high": 8}, {"heldout_size": "all"}, {"heldout_size": 10**6}],
    "gsm8k": [{"heldout_size": -1}, {"heldout_size": 2.0}, {"skip_bad_gold": "no"}, {"files_glob": 7}],
    "math500": [{"heldout_size": -1}, {"skip_bad_gold": 1}],
    "gym:chain_sum": [{"train_size": 0}, {"train_size": "many"}, {"heldout_size": 10**9}, {"max_terms": "many"}],
}


@pytest.mark.parametrize(("name", "options"), [(name, wrong) for name in WRONG for wrong in WRONG[name]])
def test_a_wrong_value_of_any_option_is_a_sentence(name, options, tmp_path):
    if name.startswith("gym:"):
        pytest.importorskip("reasoning_gym")
    with pytest.raises(InputError) as caught:
        make_task(name, data_dir=tmp_path, options=options)
    option, value = next(iter(options.items()))
    assert option in str(caught.value) and str(value) in str(caught.value), caught.value


def test_names_of_gym_tasks_are_read_without_importing_it():
    factory = pytest.importorskip("reasoning_gym.factory")
    assert gym.names() == set(factory.DATASETS)
    with pytest.raises(InputError, match=r"unknown task 'gym:chainsum' \(did you mean gym:chain_sum\?\)"):
        make_task("gym:chainsum")


def test_what_a_config_says_of_tasks_is_checked_without_their_data():
    config = default_config()
    config.task.name, config.task.data_dir, config.eval.tasks = "math", "/does/not/exist", ("aime24", "gsm8k")
    assert mistakes(config) == []
    config.task.mix = {"arithmetic": 1.0, "suns": 1.0}
    config.task.options = {"arithmetic": {"k_mx": 3}, "arithmetik": {}, "suns": {}}
    config.eval.tasks = ("aime23",)
    option, name, options, evaluated = mistakes(config)
    assert option.startswith("task 'arithmetic' has no option k_mx (did you mean k_max?); it has heldout_size")
    assert name.startswith("unknown task 'suns' (did you mean sums?)")
    assert options.startswith("task.options has 'arithmetik' (did you mean arithmetic?) and task.mix has no such task;")
    assert evaluated.startswith("unknown task 'aime23' (did you mean aime2")
    config.task.mix = {"arithmetic": 1.0}
    config.task.options = {"arithmetic": 5}
    assert mistakes(config)[0] == "task 'arithmetic' has the options 5; use a dict such as {'name': 1}"


def test_every_option_is_known_by_its_kind():
    """Else a wrong value would reach the task: an annotation that is not a kind of config/knobs.py is not checked."""
    for name in NAMES:
        make = gym.make_gym if name.startswith("gym:") else registry._GENERATED.get(name, competition.make_competition)
        for option, kind in get_type_hints(make).items():
            known = option in {*registry.NO_OPTIONS, "options", "return"}
            assert known or set(get_args(kind) or [kind]) <= {*KINDS, type(None)}, (name, option)


def section(**changes):
    plain = {"name": "arithmetic", "data_dir": "", "options": {}, "mix": {}, "system": True, "template_args": {}}
    return ConfigDict(plain | changes)


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
