"""Every method beside the others: arms x seeds at an equal budget, each at the learning rate that suits it.

    python benchmarks/compare.py --testbed=countdown --tokens=2000000 --seeds=0,1 --out=runs/compare.jsonl \
        --plot=runs/compare.svg

Without `--arms` these are all the methods there are (compare_arms.py: a line each); `--arms` picks some, or pieces of
IIB-LPO put in and taken out, and `--arm` adds one of your own. Model, data, sampler and evaluation are the testbed's,
and `--common` is what all arms have besides: four optimiser steps a rollout, because on the first one every ratio is
1 and most methods are one and the same.

Learning rates: every arm has the same sweep (compare_sweep.py), three rates on a tenth of the budget, and its runs
have the best one. `--rates` are others to try, one of them needs no sweep; `--no_sweep` leaves all at their configs'.

A run ends with the step that reaches the budget: `--tokens` generated (a prefix that branches share is generated once
and counts once), `--trajectories` sampled, or `--seconds` of training without evaluation and compilation. What was
reached at equal amounts of the others, and of tokens that the update went through, is read off the curves. The latent
stage comes before and counts nowhere.

A run is evaluated at the start, at `--points` even shares of the budget, and at the end once more with more samples. It
becomes one line of `--out`. Runs that the file holds are skipped, so an interrupted series goes on where it was, and
several processes with the same command share the work. Tiny models gain nothing from a second core, so one process a
core is the fastest way:

    for core in 0 1; do taskset -c $core python benchmarks/compare.py ... & done; wait

`--out=FILE --arms=` prints the tables of a file again and runs nothing.
"""

import dataclasses
import sys
import time
from pathlib import Path

from absl import app, flags, logging
from compare_arms import COMPARED, TESTBEDS, Arm, Budget, Job, named_arm, parse_arm
from compare_store import Store
from compare_sweep import SEED, rates_of

from iiblpo_jax.cli import enable_compilation_cache
from iiblpo_jax.common.errors import InputError

OUT = flags.DEFINE_string("out", "runs/compare.jsonl", "JSON lines, one a run.")
TESTBED = flags.DEFINE_enum("testbed", "arithmetic", TESTBEDS, "Config files of --arms.")
CHOSEN = flags.DEFINE_list("arms", None, "Arms of the testbed; without this and --arm every method.")
OWN = flags.DEFINE_multi_string("arm", [], "NAME:FILE:KEY=VALUE:..., a further arm; may be given again.")
COMMON = flags.DEFINE_list("common", ["update.minibatches=4"], "KEY=VALUE of all arms, under what is their own.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of sampling, data order and latents.")
RATES = flags.DEFINE_list("rates", None, "Learning rates to choose from, in place of a third, one and three times.")
NO_SWEEP = flags.DEFINE_boolean("no_sweep", False, "The learning rates of the configs.")
TOKENS = flags.DEFINE_integer("tokens", None, "Budget: generated tokens a run (300000 where no budget is given).", 1)
TRAJECTORIES = flags.DEFINE_integer("trajectories", None, "Budget: trajectories a run.", 1)
SECONDS = flags.DEFINE_float("seconds", None, "Budget: seconds of training a run.", 1e-3)
POINTS = flags.DEFINE_integer("points", 10, "Evaluations during a run, after that at the start.", 1)
PROBLEMS = flags.DEFINE_integer("problems", 128, "Held-out problems of those.", 1)
SAMPLES = flags.DEFINE_integer("samples", 16, "Samples a problem of those.", 2)
FINAL_PROBLEMS = flags.DEFINE_integer("final_problems", 256, "Held-out problems of the last evaluation.", 1)
FINAL_SAMPLES = flags.DEFINE_integer("final_samples", 64, "Samples a problem of the last evaluation.", 2)
AGAINST = flags.DEFINE_string("against", "grpo", "Arm that the others are compared with.")
PLOT = flags.DEFINE_string("plot", "", "Picture of the curves, such as runs/compare.svg; empty = none.")
LATENTS = flags.DEFINE_string("latents", "", "Folder that keeps trained latents; empty = beside --out.")


def main(_):
    logging.set_verbosity(logging.WARNING)
    try:
        store = Store(Path(OUT.value))
        failed = work(store, arms(), budget())
        show(store)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if failed:
        print(f"error: these runs failed, above is why: {'; '.join(map(str, failed))}", file=sys.stderr)
        sys.exit(1)


def arms() -> list[Arm]:
    """Those of the command line."""
    names = (COMPARED if not OWN.value else ()) if CHOSEN.value is None else CHOSEN.value
    found = [named_arm(name, TESTBED.value) for name in names if name.strip()] + [parse_arm(text) for text in OWN.value]
    common = tuple(text for text in COMMON.value if text.strip())
    return [dataclasses.replace(arm, overrides=(*common, *arm.overrides)) for arm in found]


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
      InputError: one is no whole number, or that of the sweep.
    """
    if bad := [seed for seed in SEEDS.value if not seed.strip().isdecimal()]:
        raise InputError(f"--seeds has {bad[0]!r}; list whole numbers, such as --seeds=0,1,2")
    found = [int(seed) for seed in SEEDS.value]
    if SEED in found and not NO_SWEEP.value:
        raise InputError(f"--seeds has {SEED}, with which learning rates are chosen; use another one")
    return found


def rates(arm: Arm) -> tuple[float | None, ...]:
    """The learning rates that an arm may have; None = that of its config.

    Raises:
      InputError: one is no number above 0, or there is nothing to choose from.
    """
    if NO_SWEEP.value:
        return (None,)
    if RATES.value is None:
        return rates_of(arm)
    try:
        found = tuple(dict.fromkeys(float(text) for text in RATES.value))
    except ValueError:
        found = ()
    if not found or not all(0 < rate < 1 for rate in found):
        raise InputError(f"--rates={','.join(RATES.value)}; list learning rates, such as --rates=1e-4,3e-4")
    return found


def work(store: Store, arms: list[Arm], budget: Budget) -> list[Job]:
    """Does the runs that are neither done nor under way elsewhere: the sweeps, then seed by seed; those that failed."""
    if not arms:
        return []
    from compare_run import Plan  # jax, which a wrong command line is refused without
    from compare_series import PAUSE, Contestant, Series

    plan = Plan(
        points=POINTS.value,
        problems=PROBLEMS.value,
        samples=SAMPLES.value,
        final_problems=FINAL_PROBLEMS.value,
        final_samples=FINAL_SAMPLES.value,
    )
    store.check(arms, plan.facts())
    contestants = [Contestant(arm, budget, rates(arm)) for arm in arms]
    latents = Path(LATENTS.value or f"{OUT.value}.latents")
    series = Series(store, plan, contestants, seeds(), budget, latents=latents)
    enable_compilation_cache()
    while not series.attempt():
        time.sleep(PAUSE)
    return series.failed


def show(store: Store) -> None:
    """The tables of all runs of the file, and their picture."""
    from compare_plot import plot
    from compare_table import tables

    lines = store.lines()
    compared = any(not line["sweep"] for line in lines)
    print(tables(lines, against=AGAINST.value) if compared else f"{store.path} holds no run yet to compare")
    if compared and PLOT.value:
        plot(lines, Path(PLOT.value))


if __name__ == "__main__":
    app.run(main)
