"""Line charts as inline SVG, coloured by CSS variables so that one chart serves light and dark pages."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 360, 190  # user units; the page scales the drawing to its column
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 24  # margins that hold the tick labels
MAX_POINTS = 400  # drawn a series; more would be finer than a pixel
MAX_MARKERS = 40  # points with a visible dot and a tooltip
_MIN_TO_SMOOTH = 40  # from this many points on, a running mean is drawn over the faint raw curve


class Series(NamedTuple):
    """One curve: its name and (step, value) points in order of step; values are finite."""

    label: str
    points: Sequence[tuple[float, float]]


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) that span [low, high]."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        low, high = low - (abs(low) / 10 or 0.5), high + (abs(high) / 10 or 0.5)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def number(value: float) -> str:
    """At most four significant digits, thousands as k."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value / 1000:.4g}k"
    if abs(value) >= 1e-3:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last `window` values at each place (fewer at the start)."""
    total, means = 0.0, []
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        means.append(total / min(i + 1, window))
    return means


def smoothing_window(n: int) -> int:
    """Points of the running mean drawn over a curve of n points; 1 = none is drawn."""
    return max(n // 20, 2) if n >= _MIN_TO_SMOOTH else 1


def line_chart(series: Sequence[Series], title: str) -> str:
    """An `<svg>` of the curves over a common step axis. Colours are the CSS variables --s1, --s2, ... in order."""
    steps = [x for s in series for x, _ in s.points]
    values = [y for s in series for _, y in s.points]
    x_low, x_high = min(steps), max(steps)
    ticks = nice_ticks(min(values), max(values))

    def x_at(x):
        return LEFT + (x - x_low) / ((x_high - x_low) or 1) * (WIDTH - LEFT - RIGHT)

    def y_at(y):
        return HEIGHT - BOTTOM - (y - ticks[0]) / (ticks[-1] - ticks[0]) * (HEIGHT - TOP - BOTTOM)

    body = [_y_axis(ticks, y_at), _x_axis(x_low, x_high, x_at)]
    body += [_curve(s, i + 1, x_at, y_at) for i, s in enumerate(series)]
    names = ", ".join(s.label for s in series)
    label = escape(f"{title}: {names} over training steps", quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(body)}</svg>'


def _y_axis(ticks, y_at) -> str:
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_at(t):.1f}" y2="{y_at(t):.1f}"/>'
        f'<text class="tick" x="{LEFT - 6}" y="{y_at(t) + 3.5:.1f}" text-anchor="end">{number(t)}</text>'
        for t in ticks
    )


def _x_axis(low, high, x_at) -> str:
    ticks = [t for t in nice_ticks(low, high) if low <= t <= high and t == round(t)] if high > low else [low]
    return "".join(
        f'<text class="tick" x="{x_at(t):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{number(t)}</text>' for t in ticks
    )


def _curve(series: Series, colour: int, x_at, y_at) -> str:
    points = list(series.points)
    window = smoothing_window(len(points))
    raw = _path(points, x_at, y_at, f"line raw c{colour}" if window > 1 else f"line c{colour}")
    mean = ""
    if window > 1:
        means = running_mean([y for _, y in points], window)
        mean = _path([(x, m) for (x, _), m in zip(points, means, strict=True)], x_at, y_at, f"line c{colour}")
    # A dot on every point of a short curve; on a long one invisible targets that carry the tooltip.
    stride = -(-len(points) // MAX_MARKERS)
    kind = "dot" if stride == 1 else "target"
    dots = "".join(
        f'<circle class="{kind} f{colour}" cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="{2.5 if kind == "dot" else 6}">'
        f"<title>{escape(series.label)}, step {number(x)}: {number(y)}</title></circle>"
        for x, y in points[::stride]
    )
    return raw + mean + dots


def _path(points, x_at, y_at, css: str) -> str:
    stride = -(-len(points) // MAX_POINTS)
    kept = points[::stride] if (len(points) - 1) % stride == 0 else [*points[::stride], points[-1]]
    coordinates = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in kept)
    return f'<polyline class="{css}" points="{coordinates}"/>'
