"""Curves as a picture: a row of panels for every family, budget and task; mean and standard error over seeds."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from compare_arms import WORDS
from compare_table import by_arm, comparable, points_of
from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

PANELS = {"pass@1": "pass@1", "pass@16": "pass@16", "unique_correct": "different right solutions", "entropy": "entropy"}
COLOURS = rcParams["axes.prop_cycle"].by_key()["color"]
LOOKS = [{"linestyle": dash, "color": colour} for dash, colour in itertools.product(("-", "--", ":", "-."), COLOURS)]


def plot(lines: Sequence[dict], path: Path) -> None:
    """Writes the picture; its format is that of the file's suffix."""
    groups = comparable(lines)
    figure = Figure(figsize=(3.6 * len(PANELS), 3.0 * len(groups)), layout="constrained")
    panels_GM = figure.subplots(len(groups), len(PANELS), squeeze=False)
    for panels_M, ((family, budget, task), mine) in zip(panels_GM, groups.items(), strict=True):
        for panel, (name, title) in zip(panels_M, PANELS.items(), strict=True):
            for (arm, by_seed), look in zip(by_arm(mine).items(), itertools.cycle(LOOKS), strict=False):
                curve = band([points_of(line, task, name, budget.unit) for line in by_seed.values()])
                if curve:
                    x, y, error = zip(*curve, strict=True)
                    low, high = ([a + sign * e for a, e in zip(y, error, strict=True)] for sign in (-1, 1))
                    (drawn,) = panel.plot(x, y, label=arm, linewidth=1.4, **look)
                    panel.fill_between(x, low, high, color=drawn.get_color(), alpha=0.15, linewidth=0)
            panel.set_title(f"{family}: {title}", fontsize=9)
            panel.set_xlabel(WORDS[budget.unit], fontsize=8)
            panel.xaxis.set_major_formatter(EngFormatter(sep=""))
            panel.tick_params(labelsize=7)
            panel.grid(alpha=0.25)
        panels_M[-1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.02, 1.0), ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def band(curves: Sequence[Sequence[tuple[float, float]]]) -> list[tuple[float, float, float]]:
    """(spent, mean, standard error) at the points of the longest curve, the others read off on straight lines.

    A run that ended before its time stays what it was.
    """
    grid = [x for x, _ in max(curves, key=len)]
    if not grid:
        return []
    values = [np.interp(grid, *zip(*curve, strict=True)) for curve in curves if curve]
    errors = np.std(values, axis=0, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else np.zeros(len(grid))
    return [tuple(map(float, point)) for point in zip(grid, np.mean(values, axis=0), errors, strict=True)]
