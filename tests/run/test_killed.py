"""A run stopped once and killed seven times, in the places where that could hurt, ends like one that was left alone.

One driver process imports everything once and forks a child for every launch, before any device is touched: that saves
the imports, which are most of a launch. The children share a compilation cache.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
STEPS = 20

DRIVER = """
import gc, json, os, runpy, signal, sys, threading, time
from pathlib import Path

from iiblpo_jax import cli, report, train
from iiblpo_jax.run import checkpoints
from iiblpo_jax.run import metrics
from iiblpo_jax.run import stopping
from iiblpo_jax.run import trainer


def die():
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def before(owner, name, number, seconds):
    '''SIGKILL `seconds` after the start of the call with that number of owner.name; 0 = instead of the call.'''
    original, calls = getattr(owner, name), []

    def watched(*args, **kwargs):
        calls.append(1)
        if len(calls) == number:
            die() if not seconds else threading.Timer(seconds, die).start()
        return original(*args, **kwargs)

    setattr(owner, name, watched)


class Torn:
    '''A file that takes the first bytes of a line, and then the process is dead.'''

    def __init__(self, file, count):
        self.file, self.count = file, count

    def write(self, content):
        self.file.write(content[: self.count])
        die()


def tear(number, count):
    original, calls = metrics.MetricWriter.write, []

    def write(self, *args):
        calls.append(1)
        if len(calls) == number:
            self._file = Torn(self._file, count)
        return original(self, *args)

    metrics.MetricWriter.write = write


def stop(number):
    '''The polite one: SIGTERM as soon as that many rows are written.'''
    original, calls = metrics.MetricWriter.write, []

    def write(self, *args):
        original(self, *args)
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)

    metrics.MetricWriter.write = write


PLACES = {
    "verification": (trainer.Trainer, "_verify"),
    "evaluation": (trainer.Trainer, "evaluate"),
    "save": (checkpoints.Checkpoints, "save"),
    "Orbax": (checkpoints.ocp.CheckpointManager, "save"),
    "metrics": (metrics.MetricWriter, "write"),
    "rollout log": (metrics.MetricWriter, "rollouts"),
    "file replaced": (metrics.os, "replace"),
}


def launch(workdir, kill):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if kill and kill[0] == "torn line":
        tear(*kill[1:])
    elif kill and kill[0] == "SIGTERM":
        stop(*kill[1:])
    elif kill:
        before(*PLACES[kill[0]], *kill[1:])
    cli.enable_compilation_cache()
    train.main(runpy.run_path(sys.argv[1])["get_config"](), Path(workdir))
    sys.stdout.flush()
    os._exit(0)


assert "torch" not in sys.modules  # TensorBoard's writer would take it along, for a second of every start
gc.freeze()  # what is imported stays
gc.set_threshold(50_000, 20, 50)
train.flags.FLAGS([""])
for workdir, kill in json.loads(sys.argv[2]):
    code, workdir = launch(workdir, kill), Path(workdir)
    rows = workdir / "metrics.jsonl"
    end = {
        "code": code,
        "report": (workdir / "report.html").exists(),
        "rows": rows.read_text().count("\\n") if rows.exists() else 0,
        "checkpoints": [path.name for path in workdir.glob("checkpoints/*")],
    }
    print("exit", json.dumps(end), flush=True)
"""

CONFIG = f"""
import runpy

def get_config():
    module = runpy.run_path({str(ROOT / "tests" / "run" / "test_trainer.py")!r})
    return module["make_config"](
        **module["OFF"], rollout={{"roots": 4, "unroll": False}}, train={{"steps": {STEPS}}}, checkpoint={{"every": 2}},
        eval={{"every": 3, "problems": 4, "samples": 1, "k": (1,), "greedy": False}},
    )
"""


def kills(seed: int = 0) -> list[tuple]:
    """(place, number of the call, seconds after its start): seven launches, the moments within most of them drawn.

    Between the first two, one is told to stop.
    """
    random_ = random.Random(seed)

    def soon():
        return random_.uniform(0.001, 0.05)

    return [
        ("evaluation", 1, soon()),  # before anything is written
        ("SIGTERM", 4),
        ("save", 2, 0),
        ("Orbax", 1, soon()),
        ("torn line", 3, 40),
        ("rollout log", 2, 0),
        ("file replaced", 4, 0),
        ("verification", 3, random_.uniform(0.001, 0.5)),
    ]


def without_clock(row):
    return {k: v for k, v in row.items() if not k.startswith("time/") and not k.endswith("_per_s")}


def read(workdir):
    """(rows of metrics.jsonl without the clock, text of every rollout log)."""
    rows = [without_clock(json.loads(line)) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return rows, {path.name: path.read_text() for path in (workdir / "rollouts").iterdir()}


def test_a_stop_and_seven_kills_change_nothing(tmp_path):
    (tmp_path / "driver.py").write_text(DRIVER)
    (tmp_path / "config.py").write_text(CONFIG)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    launches = [(str(straight), None), *((str(broken), kill) for kill in kills()), (str(broken), None)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "IIBLPO_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, str(tmp_path / "driver.py"), str(tmp_path / "config.py"), json.dumps(launches)]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
    ends = [json.loads(line.removeprefix("exit ")) for line in done.stdout.splitlines() if line.startswith("exit ")]
    killed = (-signal.SIGKILL, False)
    codes = [(end["code"], end["report"]) for end in ends]
    assert codes == [(0, True), killed, (0, False), *[killed] * 6, (0, True)], done.stdout

    saved = int(re.search(r"SIGTERM: saved after step (\d+)", done.stdout)[1])
    assert 3 <= saved < STEPS and f"resuming after step {saved}\n" in done.stdout
    assert ends[2]["rows"] == saved + 1 and str(saved) in ends[2]["checkpoints"]

    assert "is damaged" not in done.stdout, "a killed save leaves no checkpoint, not half of one"
    assert 3 <= done.stdout.count("resuming after step") <= 7
    rows, logs = read(broken)
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    assert (rows, logs) == read(straight)
    assert all("eval/arithmetic/pass@1" in rows[step] for step in (0, STEPS))
    assert len(logs) == STEPS and (broken / "report.html").exists()
    assert not [path for path in broken.rglob("*") if path.name.endswith(".tmp") or "orbax-checkpoint-tmp" in path.name]
