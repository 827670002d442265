"""The worker's side of the pool: receives jobs over a pipe, grades them one at a time, sends the scores back.

Runs in a process of its own that was started from scratch, so it imports the graders and nothing else. What it sends
is JSON, never a pickle: an answer that took the worker over must not get into the trainer as well.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import logging
import math
import resource
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from iiblpo_jax.rewards import guard

LOADING_BYTES = 4 << 30  # address space while the graders are imported
GRADING_BYTES = 1 << 30  # beyond that, for answers: `9^{9^{9^9}}` must end in a MemoryError, not in a full machine
GROWTH_BYTES = 256 << 20  # resident memory gained since the start after which a worker is replaced
ANSWERS = 10_000  # after which it is replaced: the caches of SymPy and of the parser only grow
ORPHAN_SECONDS = 30  # CPU time beyond the time-out after which the kernel ends a worker that nobody is watching


class Expired(BaseException):
    """Raised inside a grader that runs out of time; not an Exception, so that a grader does not swallow it."""


def main(connection: Connection) -> None:
    """Serves one pool until the pipe closes. The first message: `graders`, `preparations`, `timeout_s`."""
    for ignored in (signal.SIGINT, signal.SIGTERM):  # the pool ends its workers; a Ctrl-C is the trainer's to handle
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, _expire)
    logging.disable(logging.CRITICAL)
    _limit(resource.RLIMIT_AS, LOADING_BYTES)
    setup = connection.recv()
    try:
        graders = {name: _load(name) for name in setup["graders"]}
        for name, args in setup["preparations"]:
            _load(name)(*args)
    except BaseException as error:
        _send(connection, "failed", f"{type(error).__name__}: {error}"[:500])
        return
    size, resident = _memory()
    _limit(resource.RLIMIT_AS, size + GRADING_BYTES if size else LOADING_BYTES)
    guard.arm()
    _send(connection, "ready", None)
    for number in itertools.count(1):
        try:
            grader, args = connection.recv()
        except (EOFError, OSError):
            return
        began = time.monotonic()
        outcome, score = _graded(graders[grader], args, setup["timeout_s"])
        seconds = time.monotonic() - began
        last = number >= ANSWERS or _memory()[1] > resident + GROWTH_BYTES
        _send(connection, outcome, score, seconds=seconds, last=last)
        if last:
            return


def _send(
    connection: Connection, outcome: str, value: float | str | None, *, seconds: float = 0.0, last: bool = False
) -> None:
    connection.send_bytes(json.dumps([outcome, value, seconds, last]).encode())


def _memory() -> tuple[int, int]:
    """(address space, resident memory) of this process in bytes; (0, 0) where there is no /proc."""
    try:
        pages = Path("/proc/self/statm").read_text().split()
    except OSError:
        return 0, 0
    return int(pages[0]) * resource.getpagesize(), int(pages[1]) * resource.getpagesize()


def _load(name: str) -> Any:
    """The function called `module:function`; the module's `warm_up()` is run if it has one."""
    module_name, _, function = name.partition(":")
    module = importlib.import_module(module_name)
    getattr(module, "warm_up", lambda: None)()
    return getattr(module, function)


def _graded(grader, args: tuple, timeout_s: float) -> tuple[str, float]:
    """("ok", score), or ("timeout", 0.0), or ("crash", 0.0) for an exception or a score that is not a number."""
    _limit_cpu(timeout_s)
    try:
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        try:
            score = float(grader(*args))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Expired:
        return "timeout", 0.0
    except BaseException:
        return "crash", 0.0
    return ("ok", score) if math.isfinite(score) else ("crash", 0.0)


def _limit_cpu(timeout_s: float) -> None:
    _limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + timeout_s) + ORPHAN_SECONDS)


def _limit(kind: int, value: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # a system without this limit, or with a tighter one
        resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def _expire(signum, frame) -> None:
    raise Expired
