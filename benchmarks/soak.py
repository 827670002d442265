"""A thousand steps of a toy run in one process: does it leak memory or descriptors, does it slow down?

    python benchmarks/soak.py [--json=PATH] [--steps=1000]

The whole method on the embedded model at toy sizes, with rollout logs, evaluations and checkpoints, so that a step
takes tens of milliseconds. Ends with status 1 if, once a tenth of the steps are done, the memory of the host grows by
more than 2%, a descriptor is left open, or the last fifth of the steps takes 1.2 times as long as the second and third
tenth (medians). With --tiny nothing is judged.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import harness
from rich.console import Console

from iiblpo_jax import cli
from iiblpo_jax.defaults import default_config
from iiblpo_jax.run.metrics import MetricWriter
from iiblpo_jax.run.trainer import Trainer

GROWTH, SLOWDOWN = 1.02, 1.2
COLUMNS = ("step", "rss_mib", "descriptors", "step_seconds")


def main():
    """The run, its table, the verdict."""
    parser = harness.arguments(__doc__, repetitions=1)
    parser.add_argument("--steps", type=int, default=1000, help="a multiple of 20 (default %(default)s)")
    options = parser.parse_args()
    if options.tiny:
        options.steps = 20
    cli.enable_compilation_cache()
    with tempfile.TemporaryDirectory() as folder:
        rows = run(Path(folder), options.steps)
    harness.report(options, "soak", rows, COLUMNS)
    problems = [] if options.tiny else verdict(rows)
    print("\n".join(problems) or "no growth, no leak, no slowdown", file=sys.stderr if problems else sys.stdout)
    if problems:
        sys.exit(1)


def make_config(steps: int):
    """The whole method, small enough for tens of milliseconds a step."""
    config = default_config()
    every = steps // 20
    config.task.options = {"k_min": 2, "k_max": 3, "train_size": 64, "heldout_size": 16}
    sizes = {
        "rollout": {"slots": 8, "refill_at": 3, "max_prompt": 8, "max_tokens": 20, "top_p": 1.0, "temperature": 1.6},
        "branch": {"k": 1},
        "ib": {"estimator": "likelihood"},
        "latent": {"z": 4, "hidden": 8, "prompts": 8, "samples": 2, "steps": 50, "psa_steps": 50, "batch": 16},
        "psa": {"half_life": 8.0},
        "train": {"steps": steps, "prompts_per_step": 4},
        "optim": {"lr": 1e-5, "psa_lr": 1e-5},
        "update": {"minibatches": 1, "microbatch": 4},
        "eval": {"problems": 4, "samples": 1, "k": (1,), "greedy": False},
        "checkpoint": {"every": every},
    }
    for section, values in sizes.items():
        config[section].update(values)
    return config


def run(workdir: Path, steps: int) -> list[dict]:
    """A row every twentieth of the steps, the memory and descriptors taken at its end."""
    config, rows, seconds = make_config(steps), [], []
    trainer = Trainer(config, workdir, console=Console(quiet=True))
    with MetricWriter(workdir) as writer:
        began = time.perf_counter()
        for step, metrics, columns in trainer.steps(1, steps):
            seconds.append(time.perf_counter() - began)
            due = step % config.checkpoint.every == 0
            writer.write(step, metrics | (trainer.evaluate() if due else {}))
            writer.rollouts(step, columns)
            if due:  # the save before has ended long since
                rows.append({"step": step, **resources(), "step_seconds": harness.spread(seconds)})
                rows[-1]["seconds_all"], seconds = seconds, []
            trainer.save(step)
            began = time.perf_counter()
    trainer.close()
    return rows


def resources() -> dict:
    """Resident memory and open descriptors of this process, from /proc."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "rss_mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "descriptors": len(os.listdir("/proc/self/fd")),
    }


def verdict(rows: list[dict]) -> list[str]:
    """What is wrong with a run, one line each; rows are twentieths of it."""
    start, end, problems = rows[1], rows[-1], []
    if end["rss_mib"] > GROWTH * start["rss_mib"]:
        problems.append(
            f"memory grew from {start['rss_mib']:.0f} MiB at step {start['step']} to {end['rss_mib']:.0f} MiB"
        )
    if end["descriptors"] > start["descriptors"]:
        problems.append(f"{end['descriptors'] - start['descriptors']} descriptors were left open")
    early, late = (statistics.median(x for row in part for x in row["seconds_all"]) for part in (rows[2:6], rows[-4:]))
    if late > SLOWDOWN * early:
        problems.append(f"a step took {1000 * early:.0f} ms early on and {1000 * late:.0f} ms at the end")
    return problems


if __name__ == "__main__":
    main()
