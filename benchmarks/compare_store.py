"""The file of finished runs, one JSON line each, which several processes may fill at once."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from compare_arms import Arm, Budget, Job

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.common.jsonl import read_jsonl

OLDER = {"rate": None, "sweep": False}  # of a line from before there were sweeps


def key_of(job: Job) -> dict:
    """What a run is known by; the line of a finished run holds it."""
    return {
        "arm": job.arm.name,
        "file": job.arm.file,
        "overrides": list(job.arm.overrides),
        "seed": job.seed,
        "budget": {job.budget.unit: job.budget.amount},
        "rate": job.rate,
        "sweep": job.sweep,
    }


def arm_of(line: dict) -> Arm:
    """The arm of a line."""
    return Arm(name=line["arm"], file=line["file"], overrides=tuple(line["overrides"]))


@contextlib.contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Holds an exclusive lock on a file, which ends with the process at the latest; False if another one has it."""
    with _opened(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def _opened(path: Path) -> TextIO:
    """The file to append to. Its folder is made again if another process, whose claim was the last, just removed it."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("a")
        except (FileNotFoundError, FileExistsError):
            if path.parent.exists() and not path.parent.is_dir():
                raise


class Store:
    """`FILE.jsonl`, and beside it `FILE.jsonl.claims/` with a locked file for every run under way."""

    def __init__(self, path: Path):
        self.path = path
        self._claims = path.with_name(path.name + ".claims")

    def lines(self) -> list[dict]:
        """Runs done so far."""
        return [OLDER | line for line in read_jsonl(self.path)] if self.path.exists() else []

    def has(self, key: dict) -> bool:
        """Whether this run is done."""
        return any(key.items() <= line.items() for line in self.lines())

    def check(self, arms: list[Arm], evaluation: dict) -> None:
        """Refuses runs that could not stand in one table with those of the file, or with each other.

        Raises:
          InputError: an arm has the name of one with other overrides, or runs were evaluated in another way.
        """
        known: dict[tuple[str, str], Arm] = {}
        for arm in [*map(arm_of, self.lines()), *arms]:
            other = known.setdefault((arm.family, arm.name), arm)
            if other != arm:
                raise InputError(
                    f"{self.path}: two arms of {arm.family} are called {arm.name}, {_words(other)} and {_words(arm)}; "
                    "give one another name, or another --out"
                )
        for line in self.lines():
            if arms and line["evaluation"] != evaluation:
                raise InputError(
                    f"{self.path} holds runs evaluated with {_flags(line['evaluation'])}, and this one has "
                    f"{_flags(evaluation)}; use the same flags, or another --out"
                )

    def check_rates(self, arm: Arm, budget: Budget, rates: Sequence[float | None]) -> None:
        """Refuses runs of one arm with several learning rates in one comparison.

        Raises:
          InputError: the file holds one with a rate that is none of `rates`; None is that of the arm's config.
        """
        for line in self.lines():
            mine = arm_of(line) == arm and line["budget"] == {budget.unit: budget.amount} and not line["sweep"]
            if mine and line["rate"] not in rates:
                raise InputError(
                    f"{self.path} holds a run of {arm.name} with {_rate(line['rate'])}, and this one would have "
                    f"{' or '.join(map(_rate, rates))}; use the same --rates and --no_sweep, or another --out"
                )

    @contextlib.contextmanager
    def claim(self, key: dict) -> Iterator[bool]:
        """Whether this process is to do a run now: it is neither done nor under way in another process."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        path = self._claims / digest
        with locked(path, wait=False) as mine:
            yield mine and not self.has(key)
            if mine and self.has(key):  # only now: who opened the file before will find the run done
                path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # other claims are in it
                    self._claims.rmdir()

    def append(self, line: dict) -> None:
        """Adds a run, whole or not at all, after whatever a killed process left."""
        with self.path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(json.dumps(line).encode() + b"\n")


def _words(arm: Arm) -> str:
    return ":".join((arm.file, *arm.overrides))


def _rate(rate: float | None) -> str:
    return "the learning rate of its config" if rate is None else f"learning rate {rate:g}"


def _flags(evaluation: dict) -> str:
    return " ".join(f"--{name}={value}" for name, value in evaluation.items())
