"""The launchers, without installing anything: their syntax, and what they say when they cannot go on."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_it_parses(script):
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s.name != "common.sh"], ids=lambda path: path.name)
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
