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
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, NamedTuple

from iiblpo_jax.rewards.own import REWARD, Parts, Recipe
from iiblpo_jax.rewards.verifier import Job

GRACE_SECONDS = 0.5
START_SECONDS = 120.0  # imports and preparations on a cold and busy machine
MAX_FAILED_STARTS = 3
MAX_REPLY = 4096  # bytes of a worker's message; a longer one was not written by our worker
MAX_OWN_REPLY = 16 << 20  # of one that judges many responses with named numbers
OUTCOMES = ("ok", "timeout", "crash", "ready", "failed")

# The package is this one, wherever the path of the trainer leads; its __init__ loads nothing until it is asked.
_BOOT = """
import importlib.util, sys
from multiprocessing.connection import Connection
connection = Connection(int(sys.argv[1]))
sys.path[:] = connection.recv()
spec = importlib.util.spec_from_file_location("iiblpo_jax", sys.argv[2] + "/__init__.py")
package = sys.modules["iiblpo_jax"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
from iiblpo_jax.rewards.worker import main
main(connection)
"""


class Reply(NamedTuple):
    """How one job ended.

    Attributes:
      outcome: ok, timeout or crash; or skipped, of a job that was not begun (`most_bad` of `Pool.grade`).
      score: what the grader returned; 0.0 unless ok.
      seconds: wall-clock seconds it took in its worker; until the end of the worker where it was ended.
      parts: of the user's own verifier: what it says of each response of the call; then there is no score.
      error: of the user's own verifier: what it raised, in words.
    """

    outcome: str
    score: float
    seconds: float
    parts: tuple[Parts, ...] = ()
    error: str = ""


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
      own: in place of graders, the user's own verifiers by name, as recipes (own.py). They run without the limits that
        are set for graders, and what they print goes to stderr.

    Attributes:
      started: processes started so far.
    """

    def __init__(
        self,
        graders: Sequence[str],
        *,
        workers: int,
        timeout_s: float,
        preparations: Sequence[Job] = (),
        own: Mapping[str, Recipe] | None = None,
    ):
        self.started = 0
        prepared = [tuple(job) for job in preparations]  # a worker need not know the class before it has a path
        self._setup = {
            "graders": list(graders),
            "preparations": prepared,
            "timeout_s": timeout_s,
            "own": dict(own or {}),
        }
        self._size = workers
        self._workers: list[_Worker] = []
        self._failed_starts = 0

    def run(self, jobs: Sequence[Job]) -> tuple[list[float], dict[str, int]]:
        """Scores in the order of the jobs, and `count` of the rest: both kinds of bad end score 0. See `grade`."""
        replies = self.grade(jobs)
        return [reply.score for reply in replies], count(replies)

    def start(self) -> None:
        """Starts one worker now and waits until it is ready.

        Raises:
          PoolError: it does not start.
        """
        self._failed_starts = 0
        self._fill(1)
        while not any(worker.idle for worker in self._workers):
            for worker in self._next_events():
                if worker.collect()[1].outcome == "failed":
                    raise PoolError(worker.failure)

    def grade(self, jobs: Sequence[Job], *, most_bad: float = math.inf) -> list[Reply]:
        """How each job ended, in their order; after more than `most_bad` bad ends the jobs not yet begun are skipped.

        Raises:
          PoolError: no worker starts.
        """
        try:
            return self._grade(jobs, most_bad)
        except BaseException:  # interrupted halfway: what the workers still send belongs to nobody
            self.close()
            raise

    def _grade(self, jobs: Sequence[Job], most_bad: float) -> list[Reply]:
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
            if pending and sum(reply.outcome != "ok" for reply in replies.values()) > most_bad:
                replies |= dict.fromkeys(pending, Reply("skipped", 0.0, 0.0))
                pending.clear()
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
        self._own = bool(setup["own"])
        self.process = _start(theirs, aloud=self._own)
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
            return item, _reply(outcome, value, seconds)
        self.ready = outcome == "ready"
        if not self.ready:
            self.failure = value or self.failure
            self.kill()
        return None, Reply("ready" if self.ready else "failed", 0.0, seconds)

    def _receive(self) -> tuple[str, Any, float, bool]:
        """(outcome, value, seconds, whether the process is done for)."""
        died = "died", 0.0, self._elapsed(), True
        try:
            limit = MAX_OWN_REPLY if self._own else MAX_REPLY
            outcome, value, seconds, last = json.loads(self.connection.recv_bytes(limit))
        except (EOFError, OSError, ValueError, TypeError, RecursionError):
            return died
        fits = outcome in OUTCOMES and _finite(seconds) and self._fits(outcome, value)
        return (outcome, value, seconds, bool(last)) if fits else died

    def _fits(self, outcome: str, value: Any) -> bool:
        """Whether a worker could have sent this value."""
        if outcome == "failed":
            return isinstance(value, str)
        if not self.ready:
            return value is None
        if not self._own or outcome == "timeout":
            return _finite(value)
        return isinstance(value, str) if outcome == "crash" else _are_parts(value)

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def kill(self) -> None:
        self.alive = False
        self.process.kill()
        self.process.wait()
        self.connection.close()


def _finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _are_parts(value: Any) -> bool:
    """Whether a value is what own.judged returns, or what environments say: a reward, and numbers or texts."""

    def fits(parts: Any) -> bool:
        named = isinstance(parts, dict) and _finite(parts.get(REWARD))
        return named and all(isinstance(x, str) or _finite(x) for x in parts.values())

    return isinstance(value, list) and all(map(fits, value))


def _reply(outcome: str, value: Any, seconds: float) -> Reply:
    if isinstance(value, list):
        return Reply(outcome, 0.0, seconds, parts=tuple(value))
    if isinstance(value, str):
        return Reply(outcome, 0.0, seconds, error=value)
    return Reply(outcome, value, seconds)


def _start(connection: Connection, *, aloud: bool) -> subprocess.Popen:
    """A new interpreter that serves `connection`; the parent's copy is closed, so a death is seen as end of file.

    `aloud`: what it prints goes to the stderr of this process, else nowhere.
    """
    output = sys.stderr if aloud and _has_file(sys.stderr) else subprocess.DEVNULL
    package = Path(__file__).resolve().parents[1]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    with connection:
        return subprocess.Popen(
            [sys.executable, "-c", _BOOT, str(connection.fileno()), str(package)],
            pass_fds=[connection.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=os.environ | threads,
        )


def _has_file(stream: Any) -> bool:
    """Whether a process can write to a stream; a notebook's has no file."""
    try:
        return stream.fileno() >= 0
    except (AttributeError, OSError, ValueError):
        return False
