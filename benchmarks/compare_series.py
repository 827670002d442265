"""The runs of one command: the sweeps of all arms, then the comparison seed by seed, shared with other processes."""

import itertools
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from compare_arms import Arm, Budget, Job
from compare_run import Plan, run
from compare_store import Store, key_of
from compare_sweep import best, results, sweep_of

from iiblpo_jax.common.errors import InputError

PAUSE = 10.0  # seconds between two looks at a sweep that other processes are at


class Contestant:
    """An arm, the learning rates it may have (None = that of its config), and the runs that choose among them."""

    def __init__(self, arm: Arm, budget: Budget, rates: Sequence[float | None]):
        self.arm, self.rates = arm, rates
        self.sweep = sweep_of(arm, budget, rates)

    def chosen(self, lines: Sequence[dict]) -> Sequence[float | None]:
        """Its rate alone, or all that it may have while its sweep is not over."""
        found = results(lines, self.sweep)
        return [best(found)] if found and len(found) == len(self.sweep) else self.rates


class Series:
    """Arms x seeds at one budget.

    Args:
      store: finished runs.
      plan: how each is measured.
      contestants, seeds, budget: what is to be compared.
      latents: folder of what runs have in common.

    Attributes:
      failed: runs that ended with an error in this process, which said it on stderr.

    Raises:
      InputError: a config is wrong, or the file holds a run of one of the arms with another learning rate.
    """

    def __init__(
        self,
        store: Store,
        plan: Plan,
        contestants: Sequence[Contestant],
        seeds: Sequence[int],
        budget: Budget,
        *,
        latents: Path,
    ):
        self._store, self._plan, self._contestants, self._seeds = store, plan, contestants, seeds
        self._budget, self._latents = budget, latents
        self._count = sum(len(one.sweep) + len(seeds) for one in contestants)
        self.failed: list[Job] = []
        lines = store.lines()
        for one in contestants:  # refused before hours of the arms before
            store.check_rates(one.arm, budget, one.chosen(lines))
            for job in (*one.sweep, *(Job(arm=one.arm, seed=seed, budget=budget) for seed in seeds)):
                job.config()

    def attempt(self) -> bool:
        """Does what can be done now; False if something waits for a sweep that another process is at."""
        number = itertools.count(1)
        for one in self._contestants:
            for job in one.sweep:
                self._do(job, next(number))
        ready = [self._compare(one, seed, next(number)) for seed in self._seeds for one in self._contestants]
        return all(ready)

    def _compare(self, one: Contestant, seed: int, number: int) -> bool:
        rates = one.chosen(self._store.lines())
        if len(rates) > 1:
            return any(job in self.failed for job in one.sweep)
        self._store.check_rates(one.arm, self._budget, rates)
        self._do(Job(arm=one.arm, seed=seed, budget=self._budget, rate=rates[0]), number)
        return True

    def _do(self, job: Job, number: int) -> None:
        if job in self.failed:
            return
        with self._store.claim(key_of(job)) as mine:
            if mine:
                self._run(job, Progress(f"[{number}/{self._count}] {job}"))

    def _run(self, job: Job, say: "Progress") -> None:
        try:
            self._store.append(run(job, self._plan, latents=self._latents, say=say))
        except Exception as error:  # the other arms are none the worse for it
            self.failed.append(job)
            print(f"{job}: {error}" if isinstance(error, InputError) else traceback.format_exc(), file=sys.stderr)


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
