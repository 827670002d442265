"""Seconds of training, without evaluation and without compilation."""

import time
from collections.abc import Callable

import jax


class Compilations:
    """Hears of every compilation of this process.

    A function that is traced inside another is reported too, before it: an interval takes the place of those it holds.
    """

    def __init__(self):
        self._spans: list[tuple[float, float]] = []

    def heard(self, event: str, seconds: float, **_) -> None:
        """A listener of jax.monitoring."""
        if event.startswith("/jax/core/compile/"):
            self.add(time.monotonic() - seconds, time.monotonic())

    def add(self, start: float, end: float) -> None:
        """An interval that just ended."""
        while self._spans and self._spans[-1][0] >= start:
            self._spans.pop()
        self._spans.append((start, end))

    def seconds(self) -> float:
        """Time spent in any of them."""
        return sum(end - start for start, end in self._spans)


COMPILATIONS = Compilations()
jax.monitoring.register_event_duration_secs_listener(COMPILATIONS.heard)


class Clock:
    """Counts from its making."""

    def __init__(self):
        self._began, self._compiled, self._aside = time.monotonic(), COMPILATIONS.seconds(), 0.0

    def seconds(self) -> float:
        """Of training, until now."""
        compiled = COMPILATIONS.seconds() - self._compiled
        return time.monotonic() - self._began - compiled - self._aside

    def aside(self, evaluate: Callable[[], dict]) -> dict:
        """What `Trainer.evaluate` says; the seconds it measured do not count, its wait for the rollout before does."""
        compiled = COMPILATIONS.seconds()
        measured = evaluate()
        self._aside += measured["time/eval_s"] - (COMPILATIONS.seconds() - compiled)  # seconds() leaves those out
        return measured
