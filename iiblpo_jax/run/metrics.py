"""What a run leaves behind while it runs: metrics.jsonl, TensorBoard events, rollouts as JSONL, a progress bar.

Only `time/*` and `*/tokens_per_s` depend on the clock; every other number is a function of the config, so two runs can
be compared line by line. The clock is the host's, and the next rollout runs while a step is written down:

    time/rollout_s     from the end of the update before, or of what ran in between, to the arrival of the tokens; with
                       train.refills the sum over the rollouts of the step
    time/reward_s      verification on the host, likewise; the reference forwards run meanwhile
    time/verifier_s    answers in worker processes, the sum of what each one took; 0 where none needed a worker
    time/score_s       from then to the end of scoring, the rest of the reference forwards included
    time/update_s      from then to the end of the update
    time/checkpoint_s  how long the checkpoint before kept the host; it is written to disk in the background
    time/eval_s        an evaluation after this step
    time/step_s        from the end of the update before to the end of this one, whatever happened in between

In a run of several processes the first one writes; the others make the same calls and nothing comes of them.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from iiblpo_jax.common.errors import warn
from iiblpo_jax.common.jsonl import plain, read_jsonl, write_atomic
from iiblpo_jax.run.rollout_log import write_rollouts
from iiblpo_jax.run.tracking import Tracking


def _without_torch(name: str) -> Any:
    """A module that takes torch along wherever it is installed, a second of every start, and does without."""
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]; an import of it is an ImportError now
    try:
        return importlib.import_module(name)
    finally:
        if hidden:
            del sys.modules["torch"]


SummaryWriter = _without_torch("tensorboardX").SummaryWriter


class MetricWriter:
    """Writes `WORKDIR/metrics.jsonl` (one flat object a step), `WORKDIR/tensorboard/` and `WORKDIR/rollouts/`.

    Opened with `resume_step=s` it drops whatever an interrupted run wrote beyond step s, so that no step appears twice;
    without it the history starts anew. A disk that is full stops nothing: rows wait in memory for the next `write`.
    What `track` starts (tracking.py) gets every row too.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        *,
        resume_step: int | None = None,
        track: Callable[[int | None], Tracking | None] = lambda start: None,
    ):
        self._leads, self._workdir = jax.process_index() == 0, Path(workdir)
        if not self._leads:
            return
        self._workdir.mkdir(parents=True, exist_ok=True)
        self._path = self._workdir / "metrics.jsonl"
        self._last_step = -1 if resume_step is None else resume_step
        self._drop_later_steps(resume_step)
        purge_step = None if resume_step is None else resume_step + 1
        self._tensorboard = SummaryWriter(str(self._workdir / "tensorboard"), purge_step=purge_step)
        self._file, self._unwritten = self._path.open("ab", buffering=0), b""
        self._tracking = track(resume_step)

    def _drop_later_steps(self, resume_step: int | None) -> None:
        last = -1 if resume_step is None else resume_step
        rows = list(read_jsonl(self._path)) if self._path.exists() and last >= 0 else []
        write_atomic(self._path, "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= last))
        for path in self._workdir.glob("rollouts/step_*.jsonl"):
            if int(path.stem.removeprefix("step_")) > last:
                path.unlink()
        if resume_step is None:
            for path in self._workdir.glob("tensorboard/events.out.tfevents.*"):
                path.unlink()

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds one line and the TensorBoard scalars of a step. Values are scalars; NaN becomes null.

        Raises:
            ValueError: the step is not after the last one written.
        """
        if not self._leads:
            return
        if step <= self._last_step:
            raise ValueError(f"step {step} is written after step {self._last_step}; merge what belongs to one step")
        row = {"step": int(step), **{name: plain(value) for name, value in metrics.items()}}
        self._unwritten += json.dumps(row).encode() + b"\n"
        self._flush()
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float):
                self._tensorboard.add_scalar(name, value, step)
        if self._tracking:
            del row["step"]
            self._tracking.log(step, row)
        self._last_step = step

    def _flush(self) -> None:
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
        except OSError as error:
            warn(f"{self._path} cannot be written ({error.strerror}); the rows wait in memory")

    def rollouts(self, step: int, columns: Mapping[str, Sequence]) -> Path | None:
        """Writes the trajectories of a step, one a line, to `rollouts/step_NNNNNN.jsonl`.

        Args:
            step, columns: of `rollout_log.write_rollouts`.
        """
        return write_rollouts(self._workdir, step, columns) if self._leads else None

    def close(self) -> None:
        """Flushes and closes both files, and the tracker."""
        if not self._leads:
            return
        if self._tracking:
            self._tracking.close()
        self._flush()
        self._file.close()
        self._tensorboard.close()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Progress:
    """A progress bar (step, reward or loss, tokens/s, ETA) on a terminal; plain lines, one a call, anywhere else."""

    def __init__(self, total: int, *, start: int = 0, console: Console | None = None):
        self._console = console or Console()
        self._total, self._start, self._began = total, start, time.monotonic()
        self._bar = None
        if self._console.is_terminal:
            self._bar = RichProgress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[status]}"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=self._console,
                expand=True,
            )
            self._task = self._bar.add_task("", total=total, completed=start, status="compiling")

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, step: int, *, tokens_per_s: float, **shown: float) -> None:
        """Shows the state after `step` of `total` steps, and by their names the numbers `shown`, such as a reward."""
        named = "  ".join(f"{name} {value:.3f}" for name, value in shown.items())
        status = f"{named}  {tokens_per_s:,.0f} tokens/s"
        if self._bar:
            self._bar.update(self._task, completed=step, status=status)
            return
        self.print(f"step {step}/{self._total}  {status}  ETA {self._eta(step)}")

    def print(self, line: str) -> None:
        """Prints a line without breaking the bar."""
        (self._bar.console if self._bar else self._console).print(line, highlight=False, markup=False, soft_wrap=True)

    def _eta(self, step: int) -> str:
        done = step - self._start
        if done <= 0:
            return "-:--"
        seconds = round((time.monotonic() - self._began) / done * (self._total - step))
        hours, rest = divmod(seconds, 3600)
        return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
