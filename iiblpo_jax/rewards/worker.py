"""The worker's side of the pool: receives jobs over a pipe, grades them one at a time, sends the scores back.

Runs in a process of its own that was started from scratch, so it imports the graders and nothing else.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import resource
import signal
import time
from multiprocessing.connection import Connection
from typing import Any

MEMORY_BYTES = 4 << 30  # `9^{9^{9^9}}` must end in a MemoryError, not in the machine's out-of-memory killer
ORPHAN_SECONDS = 30  # CPU time beyond the time-out after which the kernel ends a worker that nobody is watching


class Expired(BaseException):
    """Raised inside a grader that runs out of time; not an Exception, so that a grader does not swallow it."""


def main(connection: Connection) -> None:
    """Serves one pool until the pipe closes. The first message is the set-up: `graders`, `timeout_s`."""
    for ignored in (signal.SIGINT, signal.SIGTERM):  # the pool ends its workers; a Ctrl-C is the trainer's to handle
        signal.signal(ignored, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, _expire)
    logging.disable(logging.CRITICAL)
    _limit(resource.RLIMIT_AS, MEMORY_BYTES)
    setup = connection.recv()
    try:
        graders = {name: _load(name) for name in setup["graders"]}
    except BaseException as error:
        connection.send(("failed", f"{type(error).__name__}: {error}"))
        return
    connection.send(("ready", None))
    while True:
        try:
            grader, args = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(_graded(graders[grader], args, setup["timeout_s"]))


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
