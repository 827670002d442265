"""Learning curves as a picture: a row of panels for every family, budget and task; mean and error over seeds."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from learning_arms import WORDS
from learning_table import by_arm, comparable, points_of
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

PANELS = {"pass@1": "pass@1", "pass@16": "pass@16", "unique_correct": "different right solutions", "entropy": "entropy"}


def plot(lines: Sequence[dict], path: Path) -> None:
    """Writes the picture; its format is that of the file's suffix."""
    groups = comparable(lines)
    figure = Figure(figsize=(3.6 * len(PANELS), 3.0 * len(groups)), layout="constrained")
    panels_GM = figure.subplots(len(groups), len(PANELS), squeeze=False)
    for panels_M, ((family, budget, task), mine) in zip(panels_GM, groups.items(), strict=True):
        for panel, (name, title) in zip(panels_M, PANELS.items(), strict=True):
            for arm, by_seed in by_arm(mine).items():
                curve = band([points_of(line, task, name, budget.unit) for line in by_seed.values()])
                if curve:
                    x, y, error = zip(*curve, strict=True)
                    low, high = ([a + sign * e for a, e in zip(y, error, strict=True)] for sign in (-1, 1))
                    (drawn,) = panel.plot(x, y, label=arm, linewidth=1.4)
                    panel.fill_between(x, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)
            panel.set_title(f"{family}: {title}", fontsize=9)
            panel.set_xlabel(WORDS[budget.unit], fontsize=8)
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
            panel.tick_params(labelsize=7)
            panel.grid(alpha=0.25)
        panels_M[0].legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def band(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float, float]]:
    """(mean spent, mean, standard error) at the points that all curves have."""
    found = []
    for points in zip(*curves, strict=False):
        x, y = zip(*points, strict=True)
        error = statistics.stdev(y) / math.sqrt(len(y)) if len(y) > 1 else 0.0
        found.append((statistics.fmean(x), statistics.fmean(y), error))
    return found
