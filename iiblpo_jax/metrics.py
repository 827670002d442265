"""What a run leaves behind while it runs: metrics.jsonl, TensorBoard events, rollouts as JSONL, a progress bar.

Only `time/*` and `*/tokens_per_s` depend on the clock; every other number is a function of the config, so two runs can
be compared line by line. The clock is the host's, and the next rollout runs while a step is written down:

    time/rollout_s     from the end of the update before, or of what ran in between, to the arrival of the tokens
    time/reward_s      verification on the host; the reference forwards run meanwhile
    time/score_s       from then to the end of scoring, the rest of the reference forwards included
    time/update_s      from then to the end of the update
    time/checkpoint_s  how long the checkpoint before kept the host; it is written to disk in the background
    time/eval_s        an evaluation after this step
    time/step_s        from the end of the update before to the end of this one, whatever happened in between

In a run of several processes the first one writes; the others make the same calls and nothing comes of them.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from tensorboardX import SummaryWriter

from iiblpo_jax.errors import InputError, warn
from iiblpo_jax.forest import FINISH_NAMES

ROLLOUT_KEYS = (
    "step",
    "prompt_id",
    "trajectory",
    "parent",
    "branch_at",
    "text",
    "tokens",
    "reward",
    "correct",
    "entropy_mean",
    "ib_answer",
    "ib_prompt",
    "ib_score",
    "kept",
    "advantage",
    "finish",
)


def plain(value: Any) -> Any:
    """A value as JSON has it: arrays and their scalars become lists, numbers and booleans; NaN and infinities null."""
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "dtype"):  # NumPy or JAX; float32 through its shortest decimal, so 0.1 reads 0.1
        value = np.asarray(value)
        if value.ndim:
            return [plain(item) for item in value]
        value = float(str(value)) if value.dtype.kind in "fV" else value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_atomic(path: Path, text: str) -> None:
    """Replaces a file in one step: a reader, or a run killed at any moment, finds the old or the new text whole."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def read_jsonl(path: Path) -> Iterator[dict]:
    """The objects of a JSONL file. An unfinished last line (a killed run) is skipped.

    Raises:
        InputError: any other line that is not a JSON object.
    """
    lines = path.read_text(encoding="utf-8").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except json.JSONDecodeError as error:
            if number == len(lines):
                return
            raise InputError(f"{path}:{number} is not JSON ({error.msg}); delete the line") from error
        if isinstance(row, dict):
            yield row


class MetricWriter:
    """Writes `WORKDIR/metrics.jsonl` (one flat object a step), `WORKDIR/tensorboard/` and `WORKDIR/rollouts/`.

    Opened with `resume_step=s` it drops whatever an interrupted run wrote beyond step s, so that no step appears twice;
    without it the history starts anew. A disk that is full stops nothing: rows wait in memory for the next `write`.
    """

    def __init__(self, workdir: str | os.PathLike, *, resume_step: int | None = None):
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
            step: goes into every line.
            columns: ROLLOUT_KEYS but `step` -> R values, as lists or arrays. `tokens` holds whole responses as lists;
                `parent` is negative for roots, whose `branch_at` is then written as null too; `finish` is the code of
                the Forest; None or NaN (no such score) becomes null.

        Raises:
            ValueError: keys are missing or unknown, or columns differ in length.
        """
        if not self._leads:
            return None
        if unexpected := set(columns) ^ set(ROLLOUT_KEYS[1:]):
            raise ValueError(f"rollout keys missing or unknown: {sorted(unexpected)}")
        path = self._workdir / "rollouts" / f"step_{step:06d}.jsonl"
        path.parent.mkdir(exist_ok=True)
        values = zip(*(plain(columns[key]) for key in ROLLOUT_KEYS[1:]), strict=True)
        rows = (dict(zip(ROLLOUT_KEYS, (int(step), *row), strict=True)) for row in values)
        text = "".join(json.dumps(_named(row), ensure_ascii=False) + "\n" for row in rows)
        try:
            write_atomic(path, text)
        except OSError as error:
            warn(f"{path} is left out ({error.strerror})")
            path.with_name(path.name + ".tmp").unlink(missing_ok=True)
        return path

    def close(self) -> None:
        """Flushes and closes both files."""
        if not self._leads:
            return
        self._flush()
        self._file.close()
        self._tensorboard.close()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _named(row: dict) -> dict:
    root = row["parent"] is None or row["parent"] < 0
    lineage = {"parent": None, "branch_at": None} if root else {}
    return {**row, **lineage, "finish": FINISH_NAMES[row["finish"]]}


class Progress:
    """A progress bar (step, reward, tokens/s, ETA) on a terminal; plain lines, one a call, anywhere else."""

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

    def update(self, step: int, *, reward: float, tokens_per_s: float) -> None:
        """Shows the state after `step` of `total` steps; `reward` is the step's mean reward."""
        status = f"reward {reward:.3f}  {tokens_per_s:,.0f} tokens/s"
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
