"""Damage for fuzzing: bytes and JSON values changed where it hurts, and the one promise that a reader has to keep.

`hammer(strategy, read)` is the harness. In the suite it tries a hundred or so files, the same ones every time. With
FUZZ_SECONDS=300 in the environment every test goes on for five minutes instead, with other files.
"""

import collections
import contextlib
import copy
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import strategies as st

from iiblpo_jax.common.errors import InputError

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
BATCH = 1000  # files between two looks at the clock in the long profile
SLOW_SECONDS = 5.0  # a damaged file of a few kilobytes may not take longer than this
HEADROOM = 2 << 30  # address space that reading one may take
KEYS = ["", "x", "__class__", "a.b", "x\ny", "\ud800", "__metadata__"]
executions: collections.Counter = collections.Counter()  # (test, outcome) -> files tried

DEEP = "<deep>"  # stands for a hundred thousand lists inside one another
NUMBERS = [
    0,
    1,
    2,
    3,
    31,
    127,
    128,
    255,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
]
VALUES = [
    DEEP,
    None,
    True,
    False,
    0,
    1,
    -1,
    7,
    2**31,
    2**53,
    2**63,
    2**64,
    -(2**63),
    10**30,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "1",
    "F32",
    "x\ny",
    "\x1b[2J",
    "\ud800",
    "x" * 5000,
    "../../x",
    "/etc/passwd",
    "é\u202e",
    [],
    {},
    [[]],
    [0],
    [0, 0],
    [-1, 5],
    [5, 2],
    [2**63, 2**63],
    {"": None},
    ["a", 1],
    {"role": "user"},
    [{"role": "user", "content": 5}],
    {"content": None},
    "####",
    "\\boxed{",
    "1" * 5000,
]


def hammer(strategy: st.SearchStrategy, read: Callable[[Any], None], *, name: str, examples: int = 100) -> None:
    """Calls `read` on what the strategy draws; it may return or raise an InputError of one line, nothing else."""

    def body(drawn):
        start, outcome = time.monotonic(), "read"
        try:
            read(drawn)
        except InputError as error:
            outcome = "refused"
            assert str(error).isprintable() and len(str(error)) < 3000, error
        assert time.monotonic() - start < SLOW_SECONDS, "slow"
        executions[name, outcome] += 1

    end, seed = time.monotonic() + SECONDS, 0
    while True:
        run = hypothesis.given(strategy)(body)
        run = hypothesis.settings(
            max_examples=BATCH if SECONDS else examples,
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )(run)
        with limited_memory():
            hypothesis.seed(seed)(run)()
        seed += 1
        if time.monotonic() >= end:
            return


@contextlib.contextmanager
def limited_memory():
    """HEADROOM more address space than now, where the system can say how much that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + HEADROOM, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@st.composite
def damaged_bytes(draw, whole: bytes, *, header: int | None = None) -> bytes:
    """`whole` after one to four changes, most of them within its first `header` bytes."""
    data = bytearray(whole)
    for _ in range(draw(st.sampled_from([1, 1, 2, 4]))):
        reach = len(data) if header is None or draw(st.integers(0, 9)) == 0 else min(header, len(data))
        at = draw(st.integers(0, max(0, reach - 1)))
        kind = draw(st.sampled_from(["field", "field", "bit", "cut", "drop", "insert", "repeat"]))
        if kind == "field":
            width = draw(st.sampled_from([1, 4, 8]))
            number = draw(st.sampled_from([*NUMBERS, len(data), len(data) - at]) | st.integers(0, 2**64 - 1))
            data[at : at + width] = (number % 256**width).to_bytes(width, "little")
        elif kind == "bit" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + draw(st.integers(1, 16))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=16))
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 64))] * draw(st.integers(1, 8))
    return bytes(data)


@st.composite
def damaged_json(draw, value: Any) -> Any:
    """`value` with one to three of its parts replaced, removed, doubled or buried under a hundred lists."""
    value = copy.deepcopy(value)
    spoiled = st.sampled_from(VALUES).map(copy.deepcopy)
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        paths = _paths(value)
        if not paths:
            return draw(spoiled)
        *way, last = draw(st.sampled_from(paths))
        holder = value
        for key in way:
            holder = holder[key]
        kind = draw(st.sampled_from(["value", "value", "value", "remove", "rename", "bury", "move"]))
        if kind == "value":
            holder[last] = draw(spoiled)
        elif kind == "remove":
            del holder[last]
        elif kind == "bury":
            for _ in range(draw(st.sampled_from([1, 60, 70]))):
                holder[last] = [holder[last]]
        elif kind == "rename" and isinstance(holder, dict):
            holder[draw(st.sampled_from(["", "x", "__class__", "a.b", "x\ny", "\ud800", "__metadata__"]))] = holder[
                last
            ]
        else:  # a part of the value in another part's place
            part = value
            for key in draw(st.sampled_from(paths)):
                part = part[key] if isinstance(part, dict) and key in part else 0
            holder[last] = copy.deepcopy(part) if part is not value else 0
    return value


def json_bytes(value: Any) -> bytes:
    """JSON text."""
    return json.dumps(value).encode().replace(f'"{DEEP}"'.encode(), b"[" * 100_000 + b"]" * 100_000)


def _paths(value: Any) -> list[tuple]:
    """Keys that lead to every part of a JSON value, at most six deep."""
    found, level = [], [((), value)]
    for _ in range(6):
        below = []
        for path, part in level:
            items = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
            below += [((*path, key), item) for key, item in items]
        found += [path for path, _ in below]
        level = below
    return found
