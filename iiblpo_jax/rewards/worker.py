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

from iiblpo_jax.common.own_code import described
from iiblpo_jax.rewards import guard
from iiblpo_jax.rewards.own import made

LOADING_BYTES = 4 << 30  # address space while the graders are imported
GRADING_BYTES = 1 << 30  # beyond that, for answers: `9^{9^{9^9}}` must end in a MemoryError, not in a full machine
GROWTH_BYTES = 256 << 20  # resident memory gained since the start after which a worker is replaced
ANSWERS = 10_000  # after which it is replaced: the caches of SymPy and of the parser only grow
CHARACTERS = 500  # of an error that the user's own verifier raised
ORPHAN_SECONDS = 30  # CPU time beyond the time-out after which the kernel ends a worker that nobody is watching


class Expired(BaseException):
    """Raised inside a grader that runs out of time; not an Exception, so that a grader does not swallow it."""


def main(connection: Connection) -> None:
    """Serves one pool until the pipe closes. The first message: `graders`, `preparations`, `own`, `timeout_s`.

    `own` are verifiers of the user's own, recipes by name (own.py). They are trusted with what the user may do, so a
    worker that has any sets no limits, and says what went wrong.
    """
    # The pool ends its workers; a Ctrl-C is the trainer's to handle. Not SIG_IGN: programs that the user's own verifier
    # starts would inherit it.
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, lambda *_: None)
    signal.signal(signal.SIGALRM, _expire)
    setup = connection.recv()
    own = bool(setup["own"])
    if not own:
        logging.disable(logging.CRITICAL)
        _limit(resource.RLIMIT_AS, LOADING_BYTES)
    try:
        graders = {name: _load(name) for name in setup["graders"]}
        for name, args in setup["preparations"]:
            _load(name)(*args)
        graders |= {name: made(recipe) for name, recipe in setup["own"].items()}
    except BaseException as error:
        _send(connection, "failed", described(error)[:500])
        return
    most = math.inf if own else _limited()
    _send(connection, "ready", None)
    for number in itertools.count(1):
        try:
            grader, args = connection.recv()
        except (EOFError, OSError):
            return
        began = time.monotonic()
        outcome, value = _graded(graders[grader], args, setup["timeout_s"], own=own)
        seconds = time.monotonic() - began
        last = not own and (number >= ANSWERS or _memory()[1] > most)
        _send(connection, outcome, value, seconds=seconds, last=last)
        if last:
            return


def _limited() -> int:
    """Sets the limits under which answers are graded; resident memory beyond which this process is to be replaced."""
    size, resident = _memory()
    _limit(resource.RLIMIT_AS, size + GRADING_BYTES if size else LOADING_BYTES)
    guard.arm()
    return resident + GROWTH_BYTES


def _send(connection: Connection, outcome: str, value: Any, *, seconds: float = 0.0, last: bool = False) -> None:
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


def _graded(grader, args: tuple, timeout_s: float, *, own: bool) -> tuple[str, Any]:
    """("ok", score), or ("timeout", 0.0), or ("crash", 0.0) for an exception or a score that is not a number.

    Of the user's own verifier the value is its judgments (own.Parts), and after a crash what went wrong.
    """
    if not own:
        _limit_cpu(timeout_s)
    try:
        signal.setitimer(signal.ITIMER_REAL, timeout_s)
        try:
            value = grader(*args) if own else float(grader(*args))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Expired:
        return "timeout", 0.0
    except BaseException as error:
        return "crash", described(error)[:CHARACTERS] if own else 0.0
    return ("ok", value) if own or math.isfinite(value) else ("crash", 0.0)


def _limit_cpu(timeout_s: float) -> None:
    _limit(resource.RLIMIT_CPU, math.ceil(time.process_time() + timeout_s) + ORPHAN_SECONDS)


def _limit(kind: int, value: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # a system without this limit, or with a tighter one
        resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def _expire(signum, frame) -> None:
    raise Expired
