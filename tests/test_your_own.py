"""A run made of nothing but files of the user's own: the examples."""

import json
import shutil
import signal
import sys
from pathlib import Path

import pytest

from iiblpo_jax import cli, train
from iiblpo_jax.config.files import load
from iiblpo_jax.results.evaluation import evaluation_tasks

EXAMPLES = Path(__file__).parents[1] / "examples"
CONFIG = """
from iiblpo_jax.defaults import default_config, plain_grpo

def get_config():
    c = plain_grpo(default_config(), samples=4)
    c.task.path = "own_task.py:make"
    c.task.options = {"heldout_size": 8}
    c.objective.path = "own_objective.py:make"
    c.tracker.path = "own_tracker.py:Table"
    c.rollout.update({"slots": 8, "refill_at": 3, "max_prompt": 8, "max_tokens": 20, "temperature": 1.3})
    c.train.update({"steps": 1, "prompts_per_step": 4})
    c.eval.update({"problems": 8, "samples": 1, "k": (1,), "greedy": False})
    return c
"""


@pytest.fixture
def verb(monkeypatch):
    def run(module, *arguments):
        monkeypatch.setenv(cli.CACHE, "")
        monkeypatch.setattr(sys, "argv", ["verb", *map(str, arguments)])
        handler = signal.getsignal(signal.SIGTERM)
        try:
            cli.run(module.main)
        finally:
            signal.signal(signal.SIGTERM, handler)

    return run


def test_files_of_ones_own_are_found_again_from_anywhere(verb, tmp_path, monkeypatch, capsys):
    files, run = tmp_path / "files", tmp_path / "elsewhere" / "run"
    shutil.copytree(EXAMPLES, files)
    (files / "config.py").write_text(CONFIG)
    run.parent.mkdir()
    monkeypatch.chdir(run.parent)
    verb(train, "--config=../files/config.py", "--workdir=run", "--config.tracker.options.name=t")

    stored = json.loads((run / "config.json").read_text())
    assert stored["task"]["path"] == f"{files}/own_task.py:make"
    assert set(stored["digests"]) == {"task.path", "objective.path", "tracker.path"}
    before, row = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert 0 < before["eval/digit/pass@1"] < before["eval/digit/reward"] < 1
    assert 0 < row["reward/pass@1"] < row["reward/mean"] < 1  # partial credit counts, and is not a right answer
    assert 1 <= row["reward/digit/part/digits"] <= 3
    assert row["reward/verifier_crashes"] == row["reward/verifier_timeouts"] == 0
    assert (run / "t.csv").read_text() == f"0,\n1,{row['reward/mean']}\n"

    monkeypatch.chdir(tmp_path)
    changed = files / "own_task.py"
    changed.write_text(changed.read_text().replace("0.1 *", "0.3 *"))
    capsys.readouterr()
    verb(train, f"--workdir={run}")  # it is done: nothing is left but to find everything again
    said = capsys.readouterr()
    assert "all 1 steps are done" in said.out
    assert said.err.count("WARNING") == 1 and f"task.path = {changed}:make has changed since" in said.err
    [task] = evaluation_tasks(load(run))
    assert (task.name, len(task.heldout)) == ("digit", 8)
