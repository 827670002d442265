"""The same run on one, two and four processes: same tokens, same numbers, and checkpoints that any of them resumes."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

from iiblpo_jax import load_model
from iiblpo_jax.model.decoder import params_of

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
STEPS = 3
CONFIG = f"""
import runpy

def get_config():
    make = runpy.run_path({str(ROOT / "tests" / "run" / "test_trainer.py")!r})["make_config"]
    return make(
        train={{"steps": {STEPS}, "prompts_per_step": 4, "refills": 2}},
        ib={{"filter": "contrast"}},
        rollout={{"unroll": False}},
        update={{"minibatches": 1, "importance": "sequence_truncate"}},
        checkpoint={{"every": 2}},
        latent={{"z": 4, "hidden": 8, "prompts": 8, "samples": 2, "steps": 20, "psa_steps": 10, "batch": 16}},
        eval={{"problems": 4, "samples": 2, "k": (1, 2)}},
    )
"""


class Runs:
    """Folders of one test session: a config, a compilation cache, and runs of verbs as one or several processes."""

    def __init__(self, folder: Path, free_port, environment: dict):
        self.folder, self._free_port, self._environment = folder, free_port, environment
        (folder / "config.py").write_text(CONFIG)
        # Run by every Python before anything else: tracing is a tenth faster when garbage is collected seldom.
        (folder / "sitecustomize.py").write_text("import gc\n\ngc.set_threshold(50_000, 20, 50)\n")

    def __call__(self, count: int, name: str, *arguments: str, verb: str = "iiblpo_jax.train") -> Path:
        """Runs a verb as `count` processes on the workdir `name`, all of which must succeed."""
        workdir = self.folder / name
        command = ["-m", verb, f"--config={self.folder / 'config.py'}", f"--workdir={workdir}", *arguments]
        self.wait(self.start(count, command))
        return workdir

    def start(self, count: int, command: list[str]) -> list[subprocess.Popen]:
        shared = {
            **self._environment,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(self.folder)]),
            "IIBLPO_CACHE": str(self.folder / "cache"),
        }
        if count > 1:
            shared |= {
                "IIBLPO_COORDINATOR": f"127.0.0.1:{self._free_port()}",
                "IIBLPO_NUM_PROCESSES": str(count),
            }
        return [
            subprocess.Popen(
                [sys.executable, *command],
                env={**shared, "IIBLPO_PROCESS_ID": str(index)} if count > 1 else shared,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for index in range(count)
        ]

    def wait(self, processes: list[subprocess.Popen]) -> list[str]:
        try:
            outputs = [process.communicate(timeout=600)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        for process, output in zip(processes, outputs, strict=True):
            assert process.returncode == 0, output
        return outputs

    def copy(self, name: str, other: str, *, without: str) -> None:
        """A workdir as it was before its checkpoint `without`."""
        shutil.copytree(self.folder / name, self.folder / other)
        shutil.rmtree(self.folder / other / "checkpoints" / without)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, neighbouring_ports, virtual_devices):
    return Runs(tmp_path_factory.mktemp("processes"), neighbouring_ports, virtual_devices(1))


@pytest.fixture(scope="module")
def one(runs):
    return runs(1, "one")


@pytest.fixture(scope="module")
def two(runs):
    return runs(2, "two", "--config.mesh.fsdp=2")


def metrics_of(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def depends_on_the_run(name):
    """Neither on the clock nor on how the work is spread."""
    apart = ("rollout/slot_utilisation", "update/packing_ratio", "update/tokens")
    return not (name.startswith("time/") or name.endswith("_per_s") or name in apart)


def assert_same_metrics(workdir, expected, *, rel):
    """`ib/score` and `mismatch/*` are 0 but for rounding, and the KL between two latents nearly is."""
    pairs = list(zip(metrics_of(workdir), metrics_of(expected), strict=True))
    assert len(pairs) == STEPS + 1
    for row, wanted in pairs:
        assert row.keys() == wanted.keys()
        for name in filter(depends_on_the_run, row):
            rounding = 1e-5 if name.startswith("mismatch/") else 2e-6
            assert row[name] == pytest.approx(wanted[name], rel=rel, abs=rounding), (row["step"], name)


def rollouts_of(workdir):
    exact = ("step", "prompt_id", "tokens", "parent", "branch_at", "finish", "reward", "kept")
    files = sorted((workdir / "rollouts").iterdir())
    rows = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    return [[row[name] for name in exact] for row in rows]


def test_two_processes_take_the_steps_of_one(one, two):
    """Latent stage, refills, evaluations and report included."""
    assert rollouts_of(two) == rollouts_of(one) and len(rollouts_of(one)) == STEPS * 16
    assert_same_metrics(two, one, rel=1e-5)
    assert any(row.get("update/grad_norm", 0) > 0 for row in metrics_of(one))
    refills = [[row["rollout/refills"] for row in metrics_of(workdir)[1:]] for workdir in (one, two)]
    assert refills[0] == refills[1] and max(refills[0]) > 0
    assert (two / "report.html").exists() and {"2", "3"} <= {p.name for p in (two / "checkpoints").iterdir()}


def test_one_process_resumes_what_two_have_saved(runs, one, two):
    runs.copy("two", "two then one", without="3")
    resumed = runs(1, "two then one")
    assert rollouts_of(resumed) == rollouts_of(one)
    assert_same_metrics(resumed, one, rel=1e-4)


def test_four_processes_resume_what_one_has_saved(runs, one):
    """Rows over both axes, weights over one of them."""
    runs.copy("one", "one then four", without="3")
    resumed = runs(4, "one then four", "--config.mesh.data=2", "--config.mesh.fsdp=2")
    assert rollouts_of(resumed) == rollouts_of(one)
    assert_same_metrics(resumed, one, rel=1e-4)


def test_two_processes_export_and_evaluate_what_they_have_trained(runs, two):
    """The weights lie half and half: both take part, the first one writes."""
    runs(2, "two", f"--out={two / 'together'}", verb="iiblpo_jax.export")
    runs(1, "two", f"--out={two / 'alone'}", verb="iiblpo_jax.export")
    together, alone = (params_of(load_model(two / name)[0]) for name in ("together", "alone"))
    jax.tree.map(np.testing.assert_array_equal, together, alone)
    expected = {name: value for name, value in metrics_of(two)[-1].items() if name.startswith("eval/")}
    for count, axes in ((1, []), (2, ["--config.mesh.fsdp=2"])):
        runs(count, "two", *axes, verb="iiblpo_jax.evaluate")
        [result] = (two / "eval").glob("*.json")
        assert json.loads(result.read_text())["metrics"] == expected
        result.unlink()
        for path in (two / "eval" / "problems").iterdir():  # the next one goes on from half of it
            lines = path.read_text().splitlines(keepends=True)
            assert len(lines) == 1 + 4
            path.write_text("".join(lines[:3]))


SAVES = """
    import os, resource, sys
    from iiblpo_jax.devices import processes as distributed

    with distributed.initialize():
        import jax
        import jax.numpy as jnp
        import numpy as np
        from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

        from iiblpo_jax.run import checkpoints as module
        from iiblpo_jax.run.checkpoints import Checkpoints

        module.PATIENCE = 3
        place = NamedSharding(Mesh(np.array(jax.devices()), ("x",)), P("x"))
        state = lambda step: {"w": jax.make_array_from_callback((256,), place, lambda i: np.arange(256.0)[i] + step)}
        checkpoints = Checkpoints(sys.argv[1], keep=3, every=1)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        for step in (1, 2, 3):
            if step == 2 and jax.process_index() == 1:
                resource.setrlimit(resource.RLIMIT_FSIZE, (50, limit[1]))
            checkpoints.save(step, state(step))
            print("saved", step, checkpoints.wait(), checkpoints.latest(), flush=True)
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        checkpoints.close()
        checkpoints = Checkpoints(sys.argv[1], keep=3, every=1)
        step, restored, *_ = checkpoints.restore_latest(state(0))
        whole = jax.jit(jnp.sum)(restored["w"])
        print("restored", step, float(whole), flush=True)
        checkpoints.close()
"""


def test_a_save_that_fails_in_one_process_has_failed_in_both(runs, tmp_path):
    """A disk that is full for process 1 alone."""
    (tmp_path / "saves.py").write_text(textwrap.dedent(SAVES))
    for output in runs.wait(runs.start(2, [str(tmp_path / "saves.py"), str(tmp_path / "run")])):
        lines = [line for line in output.splitlines() if line.startswith(("saved", "restored"))]
        assert lines == ["saved 1 True 1", "saved 2 False 1", "saved 3 True 3", f"restored 3 {sum(range(256)) + 768.0}"]
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["1", "3"]
