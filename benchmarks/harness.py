"""What every benchmark shares: interleaved repetitions, medians, the machine in words, a table and a JSON file.

Arms are timed in turns (A B C A B C ...), so that a machine that slows down slows all of them; a ratio is the median of
the ratios within one turn. Every arm first runs once untimed, which compiles it.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from iiblpo_jax.planning.roofline import CHIPS

# Dense peak rates FLOP/s and memory bandwidth bytes/s of one device, by a part of its `device_kind`. GPUs are from the
# vendor's data sheets: NVIDIA A100, H100 and H200 (SXM unless the name says otherwise, without sparsity), L4, B200;
# their float32 is the TF32 rate, which is what XLA uses by default.
DEVICES = {
    "A100-SXM4-80GB": {"bfloat16": 312e12, "float32": 156e12, "bandwidth": 2.039e12},
    "A100": {"bfloat16": 312e12, "float32": 156e12, "bandwidth": 1.555e12},
    "H100 PCIe": {"bfloat16": 756e12, "float32": 378e12, "bandwidth": 2.0e12},
    "H100": {"bfloat16": 989e12, "float32": 495e12, "bandwidth": 3.35e12},
    "H200": {"bfloat16": 989e12, "float32": 495e12, "bandwidth": 4.8e12},
    "B200": {"bfloat16": 2250e12, "float32": 1100e12, "bandwidth": 8.0e12},
    "L4": {"bfloat16": 121e12, "float32": 60e12, "bandwidth": 0.3e12},
}
DEVICES |= {
    kind: {"bfloat16": chip.flops, "float32": chip.flops, "bandwidth": chip.bandwidth}
    for chip in CHIPS.values()
    for kind in chip.kinds
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """One contestant.

    Attributes:
      name: row of the table.
      run: does the work once and returns its facts: `seconds`, `tokens`, and whatever else should be in the JSON.
      warm: compiles and loads; None = one untimed `run`.
    """

    name: str
    run: Callable[[], dict]
    warm: Callable[[], object] | None = None


def arguments(doc: str, *, repetitions: int = 5) -> argparse.ArgumentParser:
    """The flags that every benchmark has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results here as well")
    parser.add_argument("--tiny", action="store_true", help="toy sizes: seconds, numbers without meaning")
    parser.add_argument("--arms", type=words, default=[], help="only these, such as 'ours,transformers' (default all)")
    parser.add_argument("--repetitions", type=int, default=repetitions, help="timed turns (default %(default)s)")
    return parser


def words(text: str) -> list[str]:
    """A comma-separated flag."""
    return [word.strip() for word in text.split(",") if word.strip()]


def chosen(arms: Sequence[Arm], options: argparse.Namespace) -> list[Arm]:
    """The arms that --arms names, or all of them."""
    return [arm for arm in arms if not options.arms or arm.name in options.arms]


def compare(arms: Sequence[Arm], *, repetitions: int, unit: str = "tokens") -> list[dict]:
    """Times all arms in turns.

    Returns:
      One row an arm, in order: `arm`, the facts of its last run, `seconds` and `<unit>_per_s` as median/min/max, all
      `seconds_all`, and `first_over_this`: how many times faster the first arm was (median/min/max over turns).
    """
    for arm in arms:
        (arm.warm or arm.run)()
    turns = [[arm.run() for arm in arms] for _ in range(repetitions)]
    rows = []
    for i, arm in enumerate(arms):
        runs = [turn[i] for turn in turns]
        rates = [run[unit] / run["seconds"] for run in runs]
        first = [turn[0][unit] / turn[0]["seconds"] for turn in turns]
        rows.append(
            {k: v for k, v in runs[-1].items() if k != "seconds"}
            | {
                "arm": arm.name,
                "seconds": spread([run["seconds"] for run in runs]),
                "seconds_all": [run["seconds"] for run in runs],
                f"{unit}_per_s": spread(rates),
                "first_over_this": spread([a / b for a, b in zip(first, rates, strict=True)]),
            }
        )
    return rows


def spread(values: Sequence[float]) -> dict:
    """Median and extremes."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def timed(call: Callable[[], object]) -> tuple[object, float]:
    """(result, seconds) of a call, device work included."""
    began = time.perf_counter()
    result = jax.block_until_ready(call())
    return result, time.perf_counter() - began


def median_seconds(call: Callable[[], object], *, repetitions: int) -> dict:
    """Seconds of a call after one untimed run: median/min/max."""
    timed(call)
    return spread([timed(call)[1] for _ in range(repetitions)])


def machine() -> dict:
    """The machine and the versions that a number depends on."""
    device = jax.devices()[0]
    versions = {}
    for package in ("jax", "jaxlib", "flax", "numpy", "torch", "transformers"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "backend": device.platform,
        "device_kind": device.device_kind,
        "devices": jax.device_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def device_limits() -> dict | None:
    """Data-sheet limits of the accelerator in use; None for a CPU or an unknown device."""
    return limits_of(jax.devices()[0].device_kind)


def limits_of(device_kind: str) -> dict | None:
    """The first entry of DEVICES whose name is in `device_kind` as whole words."""
    return next((DEVICES[name] for name in DEVICES if re.search(rf"\b{name}\b", device_kind)), None)


def report(options: argparse.Namespace, name: str, results: list[dict], columns: Sequence[str]) -> None:
    """Prints the results as a Markdown table and writes them to --json.

    Args:
      options: of `arguments`.
      name: of the benchmark.
      results: rows.
      columns: keys to print; a median/min/max cell prints as `median [min, max]`.
    """
    if not results:
        raise SystemExit(f"error: nothing was run; {name} has no arm called {', '.join(options.arms)}")
    facts = machine()
    print(f"{name}: {facts['cpu']}, {facts['cores']} cores, {facts['device_kind']}, jax {facts['versions']['jax']}")
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in results:
        print("| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        given = {k: v for k, v in vars(options).items() if k != "json" and not k.endswith("_python")}  # no local paths
        value = {"benchmark": name, "options": given, "machine": facts, "results": results}
        options.json.write_text(json.dumps(value, indent=1) + "\n")


def _cell(value) -> str:
    if isinstance(value, dict) and {"median", "min", "max"} <= value.keys():
        return f"{_number(value['median'])} [{_number(value['min'])}, {_number(value['max'])}]"
    return _number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _number(x: float) -> str:
    if isinstance(x, int) or abs(x) >= 1000:
        return f"{x:,.0f}"
    return f"{x:.3g}"
