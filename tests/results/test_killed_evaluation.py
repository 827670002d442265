"""The paper's evaluation in one command, on four small benchmarks and a tiny model: killed twice, it ends like one that
was left alone.

One driver process imports everything once and forks a child for every launch.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from iiblpo_jax.model.decoder import Decoder, params_of
from iiblpo_jax.model.files.saving import save_model
from iiblpo_jax.model.tokens.tokenizer import load_directory

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
TEMPLATE = "{% for m in messages %}{{ m.role + ':' + m.content + '\n' }}{% endfor %}"
COLUMNS = {  # of a question and its answer, as each benchmark has them
    "aime24": lambda q, a: {"Problem": q, "Answer": a},
    "aime25": lambda q, a: {"problem": q, "answer": str(a)},
    "math500": lambda q, a: {"problem": q, "solution": f"It is \\boxed{{{a}}}."},
    "olympiad": lambda q, a: {"question": q, "final_answer": [f"${a}$"]},
}

DRIVER = """
import gc, json, os, signal, sys

from iiblpo_jax import cli, evaluate
from iiblpo_jax.results import attempts, diversity, evaluation, passk, second_grader, stored, voting
from iiblpo_jax.rewards import together
from iiblpo_jax.rollout import engine
from iiblpo_jax.run import restored


def die_at(number, torn):
    '''SIGKILL behind the line of that number, or in the middle of it.'''
    add, calls = attempts.AttemptFile.add, []

    def write(self, text):
        if torn and len(calls) == number:
            text = text[: len(text) // 2]
        self._file.write(text.encode())

    def watched(self, *args):
        calls.append(1)
        add(self, *args)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    attempts.AttemptFile._write, attempts.AttemptFile.add = write, watched


gc.freeze()  # what is imported stays
gc.set_threshold(50_000, 20, 50)
for argv, kill in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        if kill:
            die_at(*kill)
        sys.argv = ["evaluate", *argv]
        cli.run(evaluate.main)
        sys.stdout.flush()
        os._exit(0)
    print("exit", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture
def model(tmp_path, letters, tiny_config):
    """Random weights and a letter a token, on disk."""
    from flax import nnx

    config = dataclasses.replace(tiny_config, vocab_size=128)
    letters(TEMPLATE).save_pretrained(str(tmp_path / "tokenizer"))
    params = params_of(Decoder(config, rngs=nnx.Rngs(0)))
    save_model(tmp_path / "model", config, params, load_directory(tmp_path / "tokenizer"))
    return tmp_path / "model"


def command(tmp_path, model, workdir):
    sizes = {
        "rollout.max_prompt": 256,
        "rollout.max_tokens": 8,
        "rollout.slots": 8,
        "rollout.refill_at": 2,
        "rollout.dtype": "float32",
        "data.verifiers": 1,
        "eval.samples": 2,
        "eval.task_samples": "{'aime24': 4, 'aime25': 4}",
        "eval.k": "1,2,4",
        "eval.avg": "3",
        "task.data_dir": tmp_path / "math",
        "model.path": model,
    }
    config = ROOT / "configs" / "math_benchmarks.py"
    return [f"--config={config}", f"--workdir={tmp_path / workdir}", *(f"--config.{k}={v}" for k, v in sizes.items())]


def evaluated(workdir):
    """(metrics, file name -> its lines in order of their problems) of an evaluation."""
    [result] = (workdir / "eval").glob("*.json")
    files = {path.name: path.read_text().splitlines() for path in (workdir / "eval" / "problems").iterdir()}
    ordered = {
        name: [first, *sorted(rest, key=lambda line: json.loads(line)["index"])]
        for name, (first, *rest) in files.items()
    }
    return json.loads(result.read_text())["metrics"], ordered


def test_two_kills_change_nothing(tmp_path, model):
    for name, row in COLUMNS.items():
        path = tmp_path / "math" / name / "test.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row(f"{name}: {i}+{i}?", 2 * i)) + "\n" for i in range(3)))
    straight, broken = (command(tmp_path, model, workdir) for workdir in ("straight", "broken"))
    launches = [(straight, None), (broken, (2, False)), (broken, (6, True)), (broken, None)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "IIBLPO_CACHE": str(tmp_path / "cache")}
    driver = [sys.executable, "-c", DRIVER, json.dumps(launches)]
    done = subprocess.run(driver, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
    ends = [int(line.removeprefix("exit ")) for line in done.stdout.splitlines() if line.startswith("exit ")]
    assert ends == [0, -signal.SIGKILL, -signal.SIGKILL, 0], done.stdout

    metrics, files = evaluated(tmp_path / "broken")
    assert (metrics, files) == evaluated(tmp_path / "straight")
    assert len(files) == 4 and all(len(lines) == 1 + 3 for lines in files.values())
    assert "aime24: 2 of 3 problems are there" in done.stdout and "math500: 1 of 3 problems are there" in done.stdout
    assert {name.removeprefix("eval/aime24/") for name in metrics if "@" in name and "aime24" in name} == {
        *("pass@1", "pass@2", "pass@4", "maj@2", "maj@4", "avg@3")
    }
    assert {name for name in metrics if name.startswith("eval/olympiad/pass")} == {
        *("eval/olympiad/pass@1", "eval/olympiad/pass@2")
    }
