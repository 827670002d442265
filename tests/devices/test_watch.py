"""Processes that watch each other, as real processes: who is named, how soon, and with which exit status. No jax."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.devices import watch as peers

PROGRAM = """
import os, sys, time
from iiblpo_jax.devices import watch as peers

index, count, port, silence, acts = *map(int, sys.argv[1:5]), sys.argv[5:]
links = peers.roll_call(index, count, host="127.0.0.1", port=port, timeout=20)
watch = peers.Watch(index, count, links, silence=silence)
watch.start()
os.write(1, b"ready\\n")
for act in acts:
    if act == "leave":
        watch.leave()
        print("left", flush=True)
        sys.exit()
    elif act == "fail":
        watch.fail("no such\\nfile", status=2, own_fault=True)
    elif act == "stumble":
        watch.fail("connection reset", status=1, own_fault=False)
    else:
        time.sleep(float(act))
while True:  # a main thread that never gives the interpreter away by itself
    pass
"""


class Processes:
    """Process i runs PROGRAM with acts[i]; ready when all have answered the roll call."""

    def __init__(self, port: int, *acts: str, silence: int = 20):
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        self.all = [
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(index), str(len(acts)), str(port), str(silence), *own.split()],
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for index, own in enumerate(acts)
        ]
        for process in self.all:
            assert process.stdout.readline() == "ready\n"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.all:
            process.kill()
            process.communicate()

    def ends(self, *indices: int, within: float = 15) -> list[tuple[int, str]]:
        """(status, stderr) of these processes."""
        deadline = time.monotonic() + within
        return [
            (process.wait(max(0.1, deadline - time.monotonic())), process.stderr.read())
            for process in (self.all[index] for index in indices)
        ]


def line(culprit: int, what: str, me: int) -> str:
    return (
        rf"error: process {culprit} of 3 (\(127.0.0.1\) )?{what}; process {me} stops; "
        r"the same command resumes from the last checkpoint\n"
    )


@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_killed_process_ends_the_others_and_they_name_it(victim, neighbouring_ports):
    others = [index for index in range(3) if index != victim]
    with Processes(neighbouring_ports(), "", "", "") as processes:
        processes.all[victim].kill()
        for me, (status, stderr) in zip(others, processes.ends(*others), strict=True):
            assert status == 1
            assert re.fullmatch(line(victim, "is gone: killed, or crashed", me), stderr)


def test_a_frozen_process_counts_as_dead_after_the_silence(neighbouring_ports):
    with Processes(neighbouring_ports(), "", "", "", silence=3) as processes:
        processes.all[1].send_signal(signal.SIGSTOP)
        start = time.monotonic()
        ends = processes.ends(0, 2)
        assert 1.5 < time.monotonic() - start < 12
        for me, (status, stderr) in zip((0, 2), ends, strict=True):
            assert status == 1 and re.fullmatch(line(1, "has given no sign of life for 3 s", me), stderr)


def test_a_failure_is_passed_on_with_its_reason_and_its_own_status_kept(neighbouring_ports):
    with Processes(neighbouring_ports(), "", "fail", "") as processes:
        (first, at_0), (second, at_1), (third, at_2) = processes.ends(0, 1, 2)
    assert (first, second, third) == (1, 2, 1)
    assert at_1 == ""  # its own line is the command line's business
    assert re.fullmatch(line(1, "failed: no such file", 0), at_0)
    assert re.fullmatch(line(1, "failed: no such file", 2), at_2)


def test_a_failure_of_process_0_is_passed_on_too(neighbouring_ports):
    with Processes(neighbouring_ports(), "fail", "", "") as processes:
        (status, _), (first, at_1), _ = processes.ends(0, 1, 2)
    assert (status, first) == (2, 1) and re.fullmatch(line(0, "failed: no such file", 1), at_1)


def test_a_death_explains_the_failures_around_it(neighbouring_ports):
    with Processes(neighbouring_ports(), "stumble", "", "stumble") as processes:
        processes.all[1].kill()
        for me, (status, stderr) in zip((0, 2), processes.ends(0, 2), strict=True):
            assert status == 1 and re.fullmatch(line(1, "is gone: killed, or crashed", me), stderr)


def test_all_leave_together_and_quietly(neighbouring_ports):
    with Processes(neighbouring_ports(), "leave", "1.5 leave", "leave") as processes:
        time.sleep(0.75)
        assert processes.all[0].poll() is None and processes.all[2].poll() is None
        assert processes.ends(0, 1, 2) == [(0, "")] * 3
        assert [process.stdout.read() for process in processes.all] == ["left\n"] * 3


def test_a_death_while_the_others_wait_to_leave_is_noticed(neighbouring_ports):
    with Processes(neighbouring_ports(), "leave", "30 leave", "leave") as processes:
        processes.all[1].kill()
        assert [status for status, _ in processes.ends(0, 2)] == [1, 1]


def roll_calls(port: int, count: int, *arguments: tuple[int, int], timeout: float = 1.0) -> list[str | None]:
    """What each (index, count) of `arguments` is told at the roll call of process 0; None = all are there."""
    told = {}

    def call(number, index, counts):
        try:
            links = peers.roll_call(index, counts, host="127.0.0.1", port=port, timeout=timeout)
            told[number] = None
            for link in links.values():
                link.socket.close()
        except InputError as error:
            told[number] = str(error)

    callers = [threading.Thread(target=call, args=(n, *own)) for n, own in enumerate([(0, count), *arguments])]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    return [told[number] for number in range(len(callers))]


def test_the_roll_call(neighbouring_ports):
    assert roll_calls(neighbouring_ports(), 3, (1, 3), (2, 3)) == [None, None, None]


def test_a_missing_process_is_named_to_everybody(neighbouring_ports):
    at_0, at_2 = roll_calls(neighbouring_ports(), 4, (2, 4), timeout=1.2)
    assert at_0 == at_2
    assert at_0.startswith("processes 1, 3 of 4 did not start within 1 s; ") and "IIBLPO_INIT_TIMEOUT" in at_0


def test_processes_that_count_differently(neighbouring_ports):
    at_0, at_1 = roll_calls(neighbouring_ports(), 2, (1, 3))
    assert at_0 == at_1 == "process 0 counts 2 processes and process 1 counts 3; set one IIBLPO_NUM_PROCESSES"


def test_two_processes_with_one_number(neighbouring_ports):
    told = roll_calls(neighbouring_ports(), 3, (1, 3), (1, 3))
    assert told[0] == "two processes have IIBLPO_PROCESS_ID=1; number them from 0 to 2"
    assert told.count(told[0]) >= 2


def test_process_0_cannot_be_reached(neighbouring_ports):
    port = neighbouring_ports()
    with pytest.raises(InputError, match=rf"process 1 cannot reach process 0 at 127.0.0.1:{port} .*IIBLPO_COORDINATOR"):
        peers.roll_call(1, 2, host="127.0.0.1", port=port, timeout=0.3)


def test_a_host_without_address():
    with pytest.raises(InputError, match=r"cannot reach process 0 at nowhere\.invalid:5555"):
        peers.roll_call(1, 2, host="nowhere.invalid", port=5555, timeout=0.3)


def test_somebody_elses_connection_is_not_counted(neighbouring_ports):
    port = neighbouring_ports()
    links = {}

    def visit():
        for words in (b"GET / HTTP/1.1\r\n\r\n", b"hello 1 2\n"):
            visitor = peers._connect(1, "127.0.0.1", port, time.monotonic() + 5, 5)
            visitor.sendall(words)
            visitors.append(visitor)

    visitors = []
    thread = threading.Thread(target=visit)
    thread.start()
    links = peers.roll_call(0, 2, host="", port=port, timeout=5)
    thread.join()
    assert list(links) == [1]
    for connection in (*visitors, links[1].socket):
        connection.close()


def test_a_taken_port():
    with (
        socket.create_server(("", 0)) as server,
        pytest.raises(InputError, match=r"port \d+ of process 0 is taken by another program; .*IIBLPO_COORDINATOR"),
    ):
        peers.listen(server.getsockname()[1])
