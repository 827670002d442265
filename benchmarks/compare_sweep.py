"""Which learning rate an arm gets: the same small sweep for every arm, on a tenth of the budget.

A seed that no comparison has; a third of the rate of the arm's config, that rate, and three times it; the rate whose
run ends with the best pass@1 on held-out problems, the smaller one of equals. They are the problems that the
comparison ends with, or some of them: what that flatters, it flatters in all arms alike.
"""

import statistics
from collections.abc import Sequence

from compare_arms import Arm, Budget, Job
from compare_store import key_of

SEED = 1000
SHARE = 0.1
FACTORS = (1 / 3, 1, 3)


def rates_of(arm: Arm) -> tuple[float, ...]:
    """Those that are tried where none are given."""
    rate = arm.config(SEED).optim.lr
    return tuple(float(f"{rate * factor:.3g}") for factor in FACTORS)


def sweep_of(arm: Arm, budget: Budget, rates: Sequence[float | None]) -> list[Job]:
    """Its runs; none where there is nothing to choose."""
    if len(rates) < 2:
        return []
    return [Job(arm=arm, seed=SEED, budget=budget.part(SHARE), rate=rate, sweep=True) for rate in rates]


def results(lines: Sequence[dict], sweep: Sequence[Job]) -> dict[float, float]:
    """rate -> pass@1 of those runs of a sweep that are done; the mean over tasks."""
    done = [(job.rate, line) for job in sweep for line in lines if key_of(job).items() <= line.items()]
    return {rate: ended(line) for rate, line in done}


def ended(line: dict) -> float:
    """pass@1 at the end of a run's curve."""
    return statistics.fmean(task["pass@1"] for task in line["points"][-1]["eval"].values())


def best(found: dict[float, float]) -> float:
    """The rate of the highest result, the smallest one of equals."""
    return min(found, key=lambda rate: (-found[rate], rate))
