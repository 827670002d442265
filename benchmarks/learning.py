"""Learning curves side by side: arms x seeds at an equal budget, with a table and a picture.

    python benchmarks/learning.py --out=runs/learning.jsonl --tokens=300000 --seeds=0,1,2 \
        --arms=branches_weight,grpo --arm=hot:configs/arithmetic.py:rollout.temperature=1.2 --plot=runs/learning.svg

An arm is a config file plus overrides: `--arms` picks those that every testbed has, `--arm` adds one of your own. A run
ends with the step that reaches the budget: `--tokens` generated (a prefix that branches share is generated once and
counts once), `--trajectories` sampled, or `--seconds` of training without evaluation and compilation. The latent stage
comes before and counts nowhere.

A run is evaluated at the start, at `--points` even shares of the budget, and at the end once more with more samples. It
becomes one line of `--out`. Runs that the file holds are skipped, so an interrupted series goes on where it was, and
several processes with the same command share the work. Tiny models gain nothing from a second core, so one process a
core is the fastest way:

    for core in 0 1; do taskset -c $core python benchmarks/learning.py ... & done; wait

`--out=FILE --arms=` prints the tables of a file again and runs nothing.
"""

import sys
import time
from pathlib import Path

from absl import app, flags, logging
from learning_arms import NAMED, TESTBEDS, Arm, Budget, named_arm, parse_arm
from learning_store import Store, key_of

from iiblpo_jax.cli import enable_compilation_cache
from iiblpo_jax.common.errors import InputError

OUT = flags.DEFINE_string("out", "runs/learning.jsonl", "JSON lines, one a run.")
TESTBED = flags.DEFINE_enum("testbed", "arithmetic", TESTBEDS, "Config files of --arms.")
CHOSEN = flags.DEFINE_list("arms", None, "Arms of the testbed; all of them without this and --arm.")
OWN = flags.DEFINE_multi_string("arm", [], "NAME:FILE:KEY=VALUE:..., a further arm; may be given again.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of sampling, data order and latents.")
TOKENS = flags.DEFINE_integer("tokens", None, "Budget: generated tokens a run (300000 where no budget is given).", 1)
TRAJECTORIES = flags.DEFINE_integer("trajectories", None, "Budget: trajectories a run.", 1)
SECONDS = flags.DEFINE_float("seconds", None, "Budget: seconds of training a run.", 1e-3)
POINTS = flags.DEFINE_integer("points", 10, "Evaluations during a run, after that at the start.", 1)
PROBLEMS = flags.DEFINE_integer("problems", 128, "Held-out problems of those.", 1)
SAMPLES = flags.DEFINE_integer("samples", 16, "Samples a problem of those.", 2)
FINAL_PROBLEMS = flags.DEFINE_integer("final_problems", 256, "Held-out problems of the last evaluation.", 1)
FINAL_SAMPLES = flags.DEFINE_integer("final_samples", 64, "Samples a problem of the last evaluation.", 2)
AGAINST = flags.DEFINE_string("against", "grpo", "Arm that the others are compared with.")
PLOT = flags.DEFINE_string("plot", "", "Picture of the curves, such as runs/learning.svg; empty = none.")
LATENTS = flags.DEFINE_string("latents", "", "Folder that keeps trained latents; empty = beside --out.")


def main(_):
    logging.set_verbosity(logging.WARNING)
    try:
        store = Store(Path(OUT.value))
        work(store, arms(), budget())
        show(store)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def arms() -> list[Arm]:
    """Those of the command line."""
    names = (NAMED if not OWN.value else ()) if CHOSEN.value is None else CHOSEN.value
    return [named_arm(name, TESTBED.value) for name in names if name.strip()] + [parse_arm(text) for text in OWN.value]


def budget() -> Budget:
    """The one of the command line.

    Raises:
      InputError: there are two.
    """
    given = {"tokens": TOKENS.value, "trajectories": TRAJECTORIES.value, "seconds": SECONDS.value}
    given = {unit: amount for unit, amount in given.items() if amount is not None} or {"tokens": 300_000}
    if len(given) > 1:
        raise InputError(f"{' and '.join(f'--{unit}' for unit in given)} are both given; one budget ends a run")
    [(unit, amount)] = given.items()
    return Budget(unit=unit, amount=amount)


def seeds() -> list[int]:
    """Those of the command line.

    Raises:
      InputError: one is no whole number.
    """
    if bad := [seed for seed in SEEDS.value if not seed.strip().isdecimal()]:
        raise InputError(f"--seeds has {bad[0]!r}; list whole numbers, such as --seeds=0,1,2")
    return [int(seed) for seed in SEEDS.value]


def work(store: Store, arms: list[Arm], budget: Budget) -> None:
    """Does the runs that are neither done nor under way elsewhere, seed by seed."""
    if not arms:
        return
    from learning_run import Plan, run  # jax, which a wrong command line is refused without

    plan = Plan(
        points=POINTS.value,
        problems=PROBLEMS.value,
        samples=SAMPLES.value,
        final_problems=FINAL_PROBLEMS.value,
        final_samples=FINAL_SAMPLES.value,
    )
    store.check(arms, plan.facts())
    runs = [(arm, seed) for seed in seeds() for arm in arms]
    for arm, seed in runs:
        arm.config(seed)  # wrong overrides are refused before hours of the arms before
    latents = Path(LATENTS.value or f"{OUT.value}.latents")
    enable_compilation_cache()
    for number, (arm, seed) in enumerate(runs, 1):
        with store.claim(key_of(arm, seed, budget)) as mine:
            if mine:
                say = Progress(f"[{number}/{len(runs)}] {arm.family}/{arm.name} seed {seed}")
                store.append(run(arm, seed, budget, plan, latents=latents, say=say))


class Progress:
    """A line at every point of a run, and every half minute."""

    def __init__(self, title: str):
        self._title, self._began, self._said, self._points = title, time.monotonic(), 0.0, -1

    def __call__(self, share: float, spent: dict, point: dict) -> None:
        """Says where the run is; the time left is that of its start, evaluations included."""
        now, elapsed = time.monotonic(), time.monotonic() - self._began
        if point["steps"] == self._points and now - self._said < 30:
            return
        self._said, self._points = now, point["steps"]
        right = " ".join(f"{task} pass@1 {found['pass@1']:.3f}" for task, found in point["eval"].items())
        rate = spent["tokens"] / spent["seconds"] if spent["seconds"] else 0
        left = f", {elapsed * (1 - share) / share / 60:.1f} min left" if 0 < share < 1 else ""
        print(
            f"{self._title}: {min(share, 1):4.0%}, step {spent['steps']}, {spent['tokens']:,} tokens, "
            f"{rate:,.0f} tokens/s, {right}{left}",
            flush=True,
        )


def show(store: Store) -> None:
    """The tables of all runs of the file, and their picture."""
    from learning_plot import plot
    from learning_table import tables

    lines = store.lines()
    print(tables(lines, against=AGAINST.value) if lines else f"{store.path} holds no run yet")
    if lines and PLOT.value:
        plot(lines, Path(PLOT.value))


if __name__ == "__main__":
    app.run(main)
