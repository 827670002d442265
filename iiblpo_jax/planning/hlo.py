"""What a compiled program says between devices: its collectives, read from the text of its HLO.

Bytes are those of a collective's result on one device. A collective in a loop counts once a turn: XLA states how often
a loop turns (`known_trip_count`), or its condition compares the counter with a constant, as that of every scan does.
Loops that end when the data says so (tokens, bins of packed rows) have no such number: what is inside counts for one
turn of each, apart from the rest.
"""

import dataclasses
import math
import re
from collections import defaultdict

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\(")
_CALLED = re.compile(
    r"(?:calls|body|true_computation|false_computation|branch_computations)=\{?([^={}]*?)[,}]? ?(?=\w+=|$)"
)
_NAMES = re.compile(r"%([\w.-]+)")
_ARRAY = re.compile(r"([a-z]+\d*)\w*\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """A kind of collective of one program.

    Attributes:
      kind: of KINDS.
      times, bytes: how often it runs and what it moves, in loops of known length and outside of loops.
      loop_times, loop_bytes: the same inside loops whose length only the data knows, for one turn of each.
    """

    kind: str
    times: int
    bytes: int
    loop_times: int
    loop_bytes: int


def collectives(text: str) -> list[Collective]:
    """Collectives of a compiled module, most bytes first."""
    computations, entry = _computations(text)
    turns = defaultdict(lambda: [0, 0])  # computation -> calls [outside, inside] loops of unknown length
    _visit(entry, (1, 0), computations, turns)
    found = defaultdict(lambda: [0, 0, 0, 0])
    for name, (outside, inside) in turns.items():
        for line in computations[name]:
            kind, size = _collective(line, name)
            if kind is not None:
                for i, value in enumerate((outside, outside * size, inside, inside * size)):
                    found[kind][i] += value
    return sorted((Collective(kind, *sums) for kind, sums in found.items()), key=lambda c: -c.bytes - c.loop_bytes)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Lines of every computation, and the name of the entry."""
    computations, entry, lines = {}, "", []
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            lines = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif line.startswith("  "):
            lines.append(line)
    return computations, entry


def _visit(name: str, calls: tuple[int, int], computations: dict, turns: dict) -> None:
    """Adds `calls` of a computation, and those of what it calls."""
    turns[name][0] += calls[0]
    turns[name][1] += calls[1]
    for line in computations[name]:
        called = [x for part in _CALLED.findall(line) for x in re.split(r"[,\s]+", part.replace("%", "")) if x]
        called = [x for x in called if x in computations]
        if not called:
            continue
        inner = calls
        if " while(" in line:
            times = _trip_count(line, computations)
            inner = (0, sum(calls)) if times is None else (calls[0] * times, calls[1] * times)
        for x in called:
            _visit(x, inner, computations, turns)


def _trip_count(line: str, computations: dict) -> int | None:
    stated = re.search(r'known_trip_count[\\"]*:\s*\{[\\"]*n[\\"]*:\s*[\\"]*(\d+)', line)
    if stated:
        return int(stated[1])
    condition = re.search(r"condition=%?([\w.-]+)", line)
    lines = computations.get(condition[1], []) if condition else []
    root = next((x for x in lines if x.lstrip().startswith("ROOT")), "")
    compared = re.search(r" compare\((.*?)\), direction=LT", root)
    constants = {
        m[1]: int(m[2]) for m in (re.match(r"\s+%?([\w.-]+) = s32\[\]\S* constant\((\d+)\)", x) for x in lines) if m
    }
    names = _NAMES.findall(compared[1]) if compared else []
    return constants.get(names[-1]) if names else None


def _collective(line: str, computation: str) -> tuple[str | None, int]:
    """(kind, bytes of the result) of an instruction; (None, 0) where it is no collective."""
    instruction = _INSTRUCTION.match(line)
    if instruction is None:
        return None, 0
    _, shape, opcode = instruction.groups()
    started = opcode.endswith("-start")
    kind = opcode.removesuffix("-start")
    if kind not in KINDS:
        return None, 0
    sizes = [_bytes(*array) for array in _ARRAY.findall(re.sub(r"\{[^{}]*\}", "", shape))]
    if started and kind in ("all-gather", "collective-permute", "reduce-scatter", "all-to-all"):
        # (operands, results, flags): the results are the second half of what is not a flag
        sizes = [size for size in sizes if size > 4] or sizes
        sizes = sizes[len(sizes) // 2 :]
    # A TPU fuses an all-reduce with the slice that follows.
    kind = "reduce-scatter" if kind == "all-reduce" and "all-reduce-scatter" in computation else kind
    return kind, sum(sizes)


def _bytes(dtype: str, shape: str) -> int:
    digits = re.search(r"\d+", dtype)
    bits = int(digits[0]) if digits else 8
    return math.prod(int(n) for n in shape.split(",") if n) * max(1, bits // 8)
