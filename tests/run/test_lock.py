"""Two runs in one workdir: the second is refused while the first lives, and only then."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.run import lock
from iiblpo_jax.run.lock import WorkdirLock

# Holds the workdir until it is killed; without jax and the package, whose imports take seconds.
OWNER = """
import sys, time, types
jax = types.ModuleType("jax")
jax.process_index = lambda: 0
package = types.ModuleType("iiblpo_jax")
package.__path__ = [sys.argv[1]]
sys.modules |= {"jax": jax, "iiblpo_jax": package}
from iiblpo_jax.run.lock import WorkdirLock
held = WorkdirLock(sys.argv[2])
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def owner(tmp_path):
    command = [sys.executable, "-c", OWNER, os.path.dirname(os.path.dirname(lock.__file__)), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def card(folder):
    return json.loads((folder / lock.FILE).read_text())


def test_a_second_run_is_refused_and_a_killed_one_is_no_hindrance(owner, tmp_path):
    host = card(tmp_path)["host"]
    with pytest.raises(InputError, match=rf"^workdir .* is in use by process {owner.pid} on host {host} \(since 20"):
        WorkdirLock(tmp_path)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert card(tmp_path)["process"] == owner.pid  # it had no time to clear up
    with WorkdirLock(tmp_path):
        assert card(tmp_path)["process"] == os.getpid()
    assert not (tmp_path / lock.FILE).exists()


def test_a_process_may_lock_several_times(tmp_path):
    """A notebook that makes its Trainer anew."""
    first, second = WorkdirLock(tmp_path), WorkdirLock(tmp_path / "." / "")
    first.release()
    first.release()
    assert card(tmp_path)["process"] == os.getpid()
    second.release()
    assert not (tmp_path / lock.FILE).exists()


def test_other_processes_of_a_run_leave_it_to_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    WorkdirLock(tmp_path).release()
    assert not any(tmp_path.iterdir())


@pytest.fixture
def left_behind(tmp_path, monkeypatch):
    """The lock of a run on another machine, and patience for a fraction of a second."""
    monkeypatch.setattr(lock, "WATCH", 0.3)
    (tmp_path / lock.FILE).write_text('{"host": "far", "process": 7, "since": "noon", "machine": "other", "beat": 3}')
    return tmp_path / lock.FILE


def test_the_file_of_another_machine_that_rests_is_stale(left_behind, capsys):
    with WorkdirLock(left_behind.parent):
        assert card(left_behind.parent)["process"] == os.getpid()
    assert "was left by process 7 on host far (since noon); watching for 0 s" in capsys.readouterr().err


def test_the_file_of_another_machine_that_beats_is_in_use(left_behind):
    timer = threading.Timer(
        0.1, left_behind.write_text, ['{"host": "far", "process": 7, "machine": "other", "beat": 4}']
    )
    timer.start()
    with pytest.raises(
        InputError, match="in use by process 7 on host far; wait for its end or stop it, or use another"
    ):
        WorkdirLock(left_behind.parent)
    timer.join()


def test_without_a_kernel_lock_the_beat_decides_on_the_same_machine_too(left_behind, monkeypatch, capsys):
    def no_lock(*_):
        raise OSError("not supported")

    monkeypatch.setattr(lock.fcntl, "flock", no_lock)
    left_behind.write_text(json.dumps({"machine": lock._machine(), "beat": 1}))
    WorkdirLock(left_behind.parent).release()
    assert "process unknown on host unknown" in capsys.readouterr().err


def test_the_owner_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.01)
    with WorkdirLock(tmp_path):
        deadline = time.monotonic() + 10
        while card(tmp_path)["beat"] < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert card(tmp_path)["beat"] >= 3


@pytest.mark.parametrize("text", ["", "{half", "[1]", "7"])
def test_a_file_that_names_nobody_is_free(tmp_path, text):
    (tmp_path / lock.FILE).write_text(text)
    with WorkdirLock(tmp_path):
        assert card(tmp_path)["process"] == os.getpid()
