"""SIGTERM and Ctrl-C: once ends the run after the step, twice ends it now; the handlers go as they came."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iiblpo_jax.run import stopping
from iiblpo_jax.run.stopping import StopRequest


def reached_soon(stop):
    deadline = time.monotonic() + 10
    while not stop.reached() and time.monotonic() < deadline:
        time.sleep(0.005)
    return stop.received


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_flag_rises_with_the_signal_and_only_where_it_is_asked_for(number, capfd):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with StopRequest() as stop:
        assert not stop.reached()
        os.kill(os.getpid(), number)
        time.sleep(0.05)
        assert not stop.received  # all processes must learn of it at the same place
        assert reached_soon(stop) and stop.signal == number
        assert stop.status == {signal.SIGTERM: 0, signal.SIGINT: 130}[number]
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1
    assert capfd.readouterr().err == f"{number.name}: saves after this step and ends; a second one ends at once\n"


def test_a_process_in_the_background_leaves_ctrl_c_to_its_shell():
    """launch/local.sh: its processes get the terminal's SIGINT, which they ignore, and the script's SIGTERM."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            assert reached_soon(stop) and stop.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_signals_are_none_of_its_business():
    seen = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.05)
        assert not stop.reached() and seen
    signal.signal(signal.SIGUSR1, before)


def test_what_the_processes_agree_on_decides(monkeypatch):
    """Another process got the signal."""
    with StopRequest() as stop:
        monkeypatch.setattr(stopping, "any_process", lambda flag: True)
        assert stop.reached() and stop.received


BLOCKED = """
import hashlib, os, signal, sys, types
package = types.ModuleType("iiblpo_jax")
package.__path__ = [sys.argv[1]]
sys.modules["iiblpo_jax"] = package  # its __init__ would import jax
from iiblpo_jax.run.stopping import StopRequest
with StopRequest():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # the main thread is busy in C and runs no Python handler
"""


@pytest.mark.parametrize(("first", "second"), [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT)])
def test_a_second_signal_ends_the_process_at_once(first, second):
    package = str(Path(stopping.__file__).parents[1])
    command = [sys.executable, "-c", BLOCKED, package]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(first)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.3)
        process.send_signal(second)
        stderr = process.communicate(timeout=10)[1]
    assert process.returncode == 128 + second
    assert stderr.splitlines()[1:] == [f"second {second.name}: exits without saving"]
