"""A tracker of the user's own: metrics go there as well as into the workdir.

    class Tracker:
        def __init__(self, *, config, workdir, start, project="mine"): ...
        def log(self, step, metrics): ...
        def close(self): ...

`tracker.path` names the class, or a function that returns such an object. It gets what it has parameters for of
`config` (plain dicts), `workdir` and `start` (the step that is resumed after, None for a new run), and tracker.options.
It lives in a thread of its own, which opens it, logs to it and closes it: a tracker that is slow, hangs or fails costs
a line on stderr and never the run.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from iiblpo_jax.common import own_code
from iiblpo_jax.common.errors import InputError, warn
from iiblpo_jax.config.defaults import RunConfig
from iiblpo_jax.config.files import resolve

KEY = "tracker.path"
WAITING = 1000  # rows that a slow tracker may be behind; later ones are dropped
PATIENCE = 30.0  # seconds that a run waits at its end for the last rows


def prepare(config: RunConfig, workdir: Path) -> Callable[[int | None], "Tracking | None"]:
    """Loads what `tracker.path` names; the function that then starts it takes `start`. None comes of an empty path.

    Raises:
      InputError: the code cannot be had, or does not take tracker.options.
    """
    reference = config.tracker.path
    if not reference:
        return lambda start: None
    make = own_code.load(reference, key=KEY)
    if not callable(make):
        raise InputError(f"{KEY} = {reference!r} is a {type(make).__name__}; name a class or a function")
    plain, options = resolve(config), config.tracker.options.to_dict()

    def arguments(start: int | None) -> dict:
        offered = {"config": plain, "workdir": workdir, "start": start}
        return own_code.arguments_of(make, offered, options, what=f"{KEY} = {reference!r}")

    arguments(None)  # now: at the start of a run everything that it needs has been paid for
    return lambda start: Tracking(lambda: make(**arguments(start)), reference)


class Tracking:
    """A tracker in its thread.

    Args:
      make: opens it.
      reference: of its code, for the messages.
    """

    def __init__(self, make: Callable[[], Any], reference: str):
        self._make, self._reference = make, reference
        self._rows: queue.Queue = queue.Queue(WAITING)
        self._failures = 0
        self._thread = threading.Thread(target=self._serve, daemon=True, name="tracker")
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Hands over the metrics of a step."""
        try:
            self._rows.put_nowait((step, dict(metrics)))
        except queue.Full:
            self._failed("it is too slow and misses rows")

    def close(self) -> None:
        """Lets it write what it has, for at most PATIENCE seconds."""
        with contextlib.suppress(queue.Full):
            self._rows.put(None, timeout=PATIENCE)
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            warn(f"{KEY} = {self._reference}: it does not come to an end and is left alone")

    def _serve(self) -> None:
        """The life of the thread."""
        tracker = self._try(self._make)
        while (row := self._rows.get()) is not None:
            if tracker is not None:
                self._try(lambda row=row: tracker.log(*row))
        if tracker is not None and hasattr(tracker, "close"):
            self._try(tracker.close)

    def _try(self, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # whatever the user's code raises
            self._failed(own_code.described(error))

    def _failed(self, what: str) -> None:
        self._failures += 1
        if self._failures == 1:
            warn(f"{KEY} = {self._reference}: {what}; the run goes on, and metrics.jsonl has every row")
