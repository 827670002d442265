"""Tasks that `task.path` names."""

import pytest
from ml_collections import ConfigDict

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data import registry
from iiblpo_jax.data.registry import make_tasks, names_of
from iiblpo_jax.defaults import default_config
from iiblpo_jax.rewards.own import Own, made

GOOD = """
    from iiblpo_jax import Problem, Task
    def judge(problems, responses): return [0.5] * len(responses)
    def make(seed, data_dir, size=2, name="mine", verifier=judge):
        train = [Problem(id=str(i), question=f"{seed} {data_dir}", answer="1", task=name) for i in range(size)]
        return Task(name=name, train=train, heldout=[], verifier=verifier, cue="#", marker="#")
"""


def section(path, **changes):
    return ConfigDict({"name": "arithmetic", "path": path, "data_dir": "", "options": {}, "mix": {}} | changes)


def test_the_function_is_called_with_the_options(own_code, tmp_path):
    [(task, weight)] = make_tasks(section(own_code(GOOD), data_dir=str(tmp_path), options={"size": 3}), seed=5)
    assert (task.name, weight, len(task.train)) == ("mine", 1.0, 3)
    assert task.train[0].question == f"5 {tmp_path}"
    assert isinstance(task.verifier, Own)
    assert made(task.verifier.recipe())(task.train, ["", "", ""]) == [{"reward": 0.5}] * 3


def test_it_is_own_in_a_mix(own_code, tmp_path):
    mixed = section(
        own_code(GOOD), mix={"sums": 3, "own": 1}, data_dir=str(tmp_path), options={"own": {"size": 1, "name": "a"}}
    )
    (own, one), (sums, three) = make_tasks(mixed, seed=0)
    assert (sums.name, three, own.name, one, len(own.train)) == ("sums", 3.0, "a", 1.0, 1)
    assert own.train[0].question == f"0 {tmp_path / 'own'}"
    assert names_of(mixed) == ["own", "sums"]
    mixed.options = {"own": {"name": "sums"}}
    with pytest.raises(InputError, match=r"task.mix has two tasks of one name \(sums, sums\); rename yours"):
        make_tasks(mixed, seed=0)


def test_a_closure_is_made_again_from_the_same_options(own_code):
    closed = GOOD.replace(
        "return Task(", "verifier = lambda problems, responses: [size / 8] * len(responses)\n        return Task("
    )
    [(task, _)] = make_tasks(section(own_code(closed), options={"size": 4}), seed=0)
    assert task.verifier.recipe()[0] == "origin"
    assert made(task.verifier.recipe())(task.train[:1], [""]) == [{"reward": 0.5}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("return Task(", "return dict("), r"mine\.py:make' returned a dict; return an iiblpo_jax\.Task"),
        (("task=name", "task='other'"), "problem '0' is of task 'other' and the task is called 'mine'; give both"),
        (("id=str(i)", "id='x'"), "two problems have the id 'x'; give each its own"),
        (("train=train", "train=['what?']"), r"'what\?' among the problems; use iiblpo_jax\.Problem"),
        (("verifier=verifier", "verifier='exact'"), "task 'mine' has the verifier 'exact'; use a function of"),
        (("verifier=verifier", "verifier=Task"), "task 'mine' has the verifier <class .*; use a function of"),
        (("str(i)", "str(i / 0)"), r"ZeroDivisionError: division by zero \(mine\.py line 5\); mend the code"),
        (("cue=", "queue="), r"TypeError: .*unexpected keyword argument 'queue' \(mine\.py line 6\)"),
    ],
)
def test_what_makes_no_task_is_refused(own_code, change, message):
    with pytest.raises(InputError, match=message):
        make_tasks(section(own_code(GOOD.replace(*change))), seed=0)


def test_options_that_it_does_not_take(own_code):
    with pytest.raises(InputError, match=r"has no parameter sise; it has name, size, verifier"):
        make_tasks(section(own_code(GOOD), options={"sise": 3}), seed=0)
    with pytest.raises(InputError, match=r"'own' is the one of task\.path, which is empty"):
        make_tasks(section("", name="own"), seed=0)


def test_a_path_and_the_name_own_go_together_before_anything_is_loaded():
    def mistakes(**task):
        config = default_config()
        config["task"].update(task)
        return registry.mistakes(config)

    assert mistakes(path="absent:make", options={"whatever": 1}) == []
    assert mistakes(path="absent:make", mix={"sums": 1, "own": 1}, options={"own": {"whatever": 1}}) == []
    assert (
        "task.mix does not name it; give it a weight under the name own" in mistakes(path="a:make", mix={"sums": 1})[0]
    )
    for named in ({"name": "own"}, {"mix": {"own": 1}}):
        assert "'own' is the one of task.path, which is empty" in mistakes(**named)[0]
    [line] = mistakes(name="jsonl:mine", options={"verifer": "math"})
    assert "has no option verifer (did you mean verifier?)" in line
