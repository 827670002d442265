"""What a change costs: decode and update of another checkout of this repository and of this one, in turns.

    git worktree add ../before COMMIT
    python benchmarks/versions.py --before=../before [--json=PATH] [--repetitions=15]

Two processes, one a checkout, each compile their own programs once; then every arm runs in one, then in the other, and
the next turn starts with the other one. Arms: `ours` of benchmarks/rollout.py (float32, its cases), and every arm of
benchmarks/update.py at a prefix share of --share. `after_over_before` are the medians of the ratios within a turn: of
wall-clock seconds and of CPU seconds, which a busy machine disturbs less. `compile` is the time of the first run
without the compilation cache. Facts of both runs (loss, gradient norm, tokens) stand in the JSON file.
"""

import contextlib
import os
import statistics
import subprocess
import sys
from pathlib import Path

import harness
from peers.protocol import Peer

HERE = Path(__file__).resolve().parent
COLUMNS = ("arm", "before_s", "after_s", "wall_after_over_before", "cpu_after_over_before", "compile_after_over_before")


def main():
    """Warms both, then takes turns."""
    options = parse()
    with contextlib.ExitStack() as stack:
        before, after = (stack.enter_context(start(root, options)) for root in (options.before, HERE.parent))
        names = [name for name in after.facts["arms"] if name in before.facts["arms"]]
        names = [name for name in names if not options.arms or name in options.arms]
        rows = [compare(name, before, after, options.repetitions) for name in names]
    options.before = revision(options.before)  # no local path into the file
    harness.report(options, "versions", rows, COLUMNS)


def parse():
    """The command line."""
    parser = harness.arguments(__doc__, repetitions=15)
    parser.add_argument("--before", type=Path, required=True, help="the other checkout")
    parser.add_argument("--share", type=int, default=50, help="inherited share of a branch in the update, percent")
    options = parser.parse_args()
    if not (options.before / "benchmarks" / "update.py").is_file():
        raise SystemExit(f"error: --before={options.before} is no checkout of this repository")
    return options


def revision(root: Path) -> str:
    """The commit that a checkout is at, as Git describes it; empty where Git does not know."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def start(root: Path, options) -> Peer:
    """The process of one checkout, its own package and benchmarks first on the path."""
    root = root.resolve()
    path = os.pathsep.join(map(str, (root, root / "benchmarks")))
    flags = [f"--share={options.share}", *(["--tiny"] if options.tiny else [])]
    environment = {"PYTHONPATH": path, "IIBLPO_CACHE": ""}
    return Peer(sys.executable, str(HERE / "peers" / "version_peer.py"), *flags, environment=environment)


def compare(name: str, before: Peer, after: Peer, repetitions: int) -> dict:
    """One row: an arm of both checkouts, turn by turn."""
    compiled = [peer.ask("warm", arm=name)["seconds"] for peer in (before, after)]
    turns = []
    for turn in range(repetitions):
        order = (before, after) if turn % 2 == 0 else (after, before)
        runs = {id(peer): peer.ask("run", arm=name) for peer in order}
        turns.append((runs[id(before)], runs[id(after)]))
    row = {"arm": name, "compile_after_over_before": compiled[1] / compiled[0], "compile_s": compiled}
    for key, column in (("seconds", "wall"), ("cpu_seconds", "cpu")):
        row[f"{column}_after_over_before"] = harness.spread([b[key] / a[key] for a, b in turns])
    row["before_s"], row["after_s"] = (statistics.median(t[i]["seconds"] for t in turns) for i in (0, 1))
    return row | {"before": turns[-1][0], "after": turns[-1][1]}


if __name__ == "__main__":
    main()
