"""A pool of worker processes for verifiers that may hang, crash or eat the machine.

Two clocks guard an item. The worker's own alarm interrupts Python code at `timeout_s` and the worker lives on; code
that cannot be interrupted (a library call, a grader that catches everything) is ended with its worker by the pool
`GRACE_SECONDS` later, and a fresh worker takes its place. An item whose process dies is tried once more before it
counts as a crash. A worker that has graded enough, or grown too much, says so with its last score and is replaced.

Workers are started as new interpreters, never forked: the trainer has JAX's threads, and a forked copy of them may
deadlock. They import neither JAX nor the trainer's main module.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, NamedTuple

from iiblpo_jax.rewards.verifier import Job

GRACE_SECONDS = 0.5
START_SECONDS = 120.0  # imports and preparations on a cold and busy machine
MAX_FAILED_STARTS = 3
MAX_REPLY = 4096  # bytes of a worker's message; a longer one was not written by our worker
OUTCOMES = ("ok", "timeout", "crash", "ready", "failed")

# The package's own __init__ offers the public API; a worker needs none of it, so an empty package stands in for it.
_BOOT = """
import sys, types
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
sys.path[:] = connection.recv()
package = types.ModuleType("iiblpo_jax")
package.__path__ = [sys.argv[2]]
sys.modules["iiblpo_jax"] = package
from iiblpo_jax.rewards.worker import main
main(connection)
"""


class Reply(NamedTuple):
    """How one job ended.

    Attributes:
      outcome: ok, timeout or crash.
      score: what the grader returned; 0.0 unless ok.
      seconds: wall-clock seconds it took in its worker; until the end of the worker where it was ended.
    """

    outcome: str
    score: float
    seconds: float


def count(replies: Sequence[Reply]) -> dict[str, int]:
    """How many ended badly, `{"timeouts": int, "crashes": int}`."""
    outcomes = [reply.outcome for reply in replies]
    return {"timeouts": outcomes.count("timeout"), "crashes": outcomes.count("crash")}


class PoolError(RuntimeError):
    """The workers cannot be started: a broken installation, not a bad answer."""


class Pool:
    """Grades jobs in worker processes. Starts them at the first job; not thread-safe; a context manager.

    Args:
      graders: every `module:function` that jobs may name; imported when a worker starts.
      preparations: jobs that a worker does when it starts.
      workers: number of processes.
      timeout_s: wall-clock seconds an item may take.

    Attributes:
      started: processes started so far.
    """

    def __init__(self, graders: Sequence[str], *, workers: int, timeout_s: float, preparations: Sequence[Job] = ()):
        self.started = 0
        prepared = [tuple(job) for job in preparations]  # a worker need not know the class before it has a path
        self._setup = {"graders": list(graders), "preparations": prepared, "timeout_s": timeout_s}
        self._size = workers
        self._workers: list[_Worker] = []
        self._failed_starts = 0

    def run(self, jobs: Sequence[Job]) -> tuple[list[float], dict[str, int]]:
        """Scores in the order of the jobs, and `count` of the rest: both kinds of bad end score 0. See `grade`."""
        replies = self.grade(jobs)
        return [reply.score for reply in replies], count(replies)

    def grade(self, jobs: Sequence[Job]) -> list[Reply]:
        """How each job ended, in their order.

        Raises:
          PoolError: no worker starts.
        """
        try:
            return self._grade(jobs)
        except BaseException:  # interrupted halfway: what the workers still send belongs to nobody
            self.close()
            raise

    def _grade(self, jobs: Sequence[Job]) -> list[Reply]:
        self._failed_starts = 0
        replies: dict[int, Reply] = {}
        pending, retried = deque(range(len(jobs))), set()
        while pending or any(worker.item is not None for worker in self._workers):
            self._workers = [worker for worker in self._workers if worker.alive]
            self._fill(len(pending))
            for worker in self._workers:
                if pending and worker.idle and worker.submit(pending[0], jobs[pending[0]]):
                    pending.popleft()
            for worker in self._next_events():
                item, reply = worker.collect()
                if reply.outcome == "failed":
                    self._count_failed_start(worker)
                elif (
                    item is not None and reply.outcome == "died" and item not in retried
                ):  # the machine may have killed it: once more
                    retried.add(item)
                    pending.append(item)
                elif item is not None:
                    replies[item] = reply._replace(outcome="crash") if reply.outcome == "died" else reply
        return [replies[item] for item in range(len(jobs))]

    def pids(self) -> list[int]:
        """Process ids of the workers that live."""
        return [worker.process.pid for worker in self._workers if worker.alive]

    def close(self) -> None:
        """Ends the workers at once. A later `run` starts new ones."""
        for worker in self._workers:
            worker.kill()
        self._workers = []

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _fill(self, pending: int) -> None:
        """Tops the pool up to its size, or to as many workers as there is work for."""
        busy = sum(worker.item is not None for worker in self._workers)
        missing = max(0, min(self._size, busy + pending) - len(self._workers))
        self._workers += [_Worker(self._setup) for _ in range(missing)]
        self.started += missing

    def _next_events(self) -> list[_Worker]:
        """Blocks until a worker has something to say or is out of time; returns those workers."""
        watched = [worker for worker in self._workers if worker.alive and not worker.idle]
        patience = min((worker.deadline for worker in watched), default=0.0) - time.monotonic()
        ready = wait([worker.connection for worker in watched], timeout=max(0.0, patience))
        now = time.monotonic()
        return [worker for worker in watched if worker.connection in ready or worker.deadline <= now]

    def _count_failed_start(self, worker: _Worker) -> None:
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            raise PoolError(f"verifier workers do not start: {worker.failure}")


class _Worker:
    """One process. `item` is the index of the job it is working on; `deadline` when it will be ended."""

    def __init__(self, setup: dict[str, Any]):
        self.connection, theirs = Pipe()
        self.process = _start(theirs)
        self.item: int | None = None
        self.ready, self.alive, self.failure = False, True, "the process died"
        self._began = time.monotonic()
        self.deadline = self._began + START_SECONDS
        self._patience = setup["timeout_s"] + GRACE_SECONDS
        with contextlib.suppress(OSError):  # a process that is dead already: `collect` finds out and says so
            self.connection.send(sys.path)
            self.connection.send(setup)

    @property
    def idle(self) -> bool:
        return self.alive and self.ready and self.item is None

    def submit(self, item: int, job: Job) -> bool:
        """Hands the job over; False if the process died while it was idle, which is not the item's fault."""
        try:
            self.connection.send(tuple(job))
        except OSError:
            self.kill()
            return False
        self.item, self._began = item, time.monotonic()
        self.deadline = self._began + self._patience
        return True

    def collect(self) -> tuple[int | None, Reply]:
        """(item or None, how it ended) of what just happened; ends the process if it died or hangs.

        The outcome of an item is that of its reply, or died (the process); of a start, ready or failed.
        """
        item, self.item = self.item, None
        if self.connection.poll():
            outcome, value, seconds, last = self._receive()
        else:  # woken by the deadline
            outcome, value, seconds, last = "timeout", 0.0, self._elapsed(), True
        if last:
            self.kill()
        if self.ready:
            return item, Reply(outcome, value, seconds)
        self.ready = outcome == "ready"
        if not self.ready:
            self.failure = value or self.failure
            self.kill()
        return None, Reply("ready" if self.ready else "failed", 0.0, seconds)

    def _receive(self) -> tuple[str, Any, float, bool]:
        """(outcome, value, seconds, whether the process is done for)."""
        died = "died", 0.0, self._elapsed(), True
        try:
            outcome, value, seconds, last = json.loads(self.connection.recv_bytes(MAX_REPLY))
        except (EOFError, OSError, ValueError, TypeError, RecursionError):
            return died
        fits = isinstance(value, str) if outcome == "failed" else _finite(value) if self.ready else value is None
        fits = fits and outcome in OUTCOMES and _finite(seconds)
        return (outcome, value, seconds, bool(last)) if fits else died

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def kill(self) -> None:
        self.alive = False
        self.process.kill()
        self.process.wait()
        self.connection.close()


def _finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _start(connection: Connection) -> subprocess.Popen:
    """A new interpreter that serves `connection`; the parent's copy is closed, so a death is seen as end of file."""
    package = Path(__file__).resolve().parents[1]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with connection:
        return subprocess.Popen(
            [sys.executable, "-c", _BOOT, str(connection.fileno()), str(package)],
            pass_fds=[connection.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | threads,
        )
