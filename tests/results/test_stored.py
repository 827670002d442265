"""Files of evaluations: what was evaluated, and that none replaces another."""

import json

import pytest

from iiblpo_jax.data.task import Task
from iiblpo_jax.defaults import default_config
from iiblpo_jax.results.stored import described, write_evaluation
from iiblpo_jax.rewards.exact import Exact
from iiblpo_jax.rewards.verifier import Problem


def task(name="sums", answer="2"):
    problems = [Problem(id=f"{name}/0", question="1+1=", answer=answer, task=name)]
    return Task(name=name, train=[], heldout=problems, verifier=Exact(marker="#"), cue="#", marker="#")


SUMS = (task(),)


def write(workdir, *, tasks=SUMS, step=7, weights="abc", score=0.5, change=None):
    config = default_config()
    for key, value in (change or {}).items():
        section, name = key.split(".")
        config[section][name] = value
    what = described(config, tasks, step=step, weights=weights)
    return write_evaluation(workdir, what, source="checkpoint", metrics={"eval/sums/pass@1": score})


def test_the_file_says_what_was_evaluated(tmp_path):
    path = write(tmp_path, change={"eval.samples": 2})
    assert path == tmp_path / "eval" / "step_000007.json"
    found = json.loads(path.read_text())
    assert found["step"] == 7 and found["source"] == "checkpoint" and found["weights"] == "abc"
    assert found["metrics"] == {"eval/sums/pass@1": 0.5} and found["eval"]["samples"] == 2
    assert [(entry["task"], entry["problems"]) for entry in found["held_out"]] == [("sums", 1)]
    assert set(found["config"]) == {"model", "data", "task", "rollout", "reward", "eval"}
    assert found["config"]["eval"] == found["eval"] and found["config"]["rollout"]["max_tokens"] == 4096


def test_the_same_evaluation_replaces_its_own_file(tmp_path):
    first, again = write(tmp_path, score=0.5), write(tmp_path, score=0.25)
    assert first == again and json.loads(again.read_text())["metrics"] == {"eval/sums/pass@1": 0.25}
    other = [write(tmp_path, change={"eval.samples": 2}) for _ in range(2)]
    assert other[0] == other[1] != first and len(list((tmp_path / "eval").iterdir())) == 2


@pytest.mark.parametrize(
    "difference",
    [
        {"step": 8},
        {"weights": "def"},  # the run began anew in the same workdir
        {"tasks": (task("gym:chain_sum"),)},
        {"tasks": (task(answer="3"),)},  # other data of the same name
        {"change": {"eval.temperature": 0.7}},
        {"change": {"rollout.max_tokens": 8}},
        {"change": {"task.data_dir": "elsewhere"}},
        {"change": {"model.dtype": "bfloat16"}},
    ],
)
def test_another_evaluation_never_replaces_it(tmp_path, difference):
    first = write(tmp_path)
    before = first.read_bytes()
    second = write(tmp_path, **difference)
    assert second != first and first.read_bytes() == before
    assert write(tmp_path, **difference) == second
    assert {path.parent.name for path in (first, second)} == {"eval"} and ":" not in second.name


def test_a_file_of_an_earlier_version_stays(tmp_path):
    path = tmp_path / "eval" / "step_000007.json"
    path.parent.mkdir()
    for text in ('{"step": 7, "metrics": {}}', "", "[]"):
        path.write_text(text)
        other = write(tmp_path)
        assert path.read_text() == text and other.name.startswith("step_000007-sums-")
