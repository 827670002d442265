"""Charts: round ticks, coordinates worked by hand, well-formed SVG."""

import math
import xml.etree.ElementTree as ET

import pytest

from iiblpo_jax.results.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Series,
    line_chart,
    nice_ticks,
    number,
    running_mean,
)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.5, 1.0]),
        (0.03, 0.97, [0, 0.5, 1.0]),
        (0, 8, [0, 2, 4, 6, 8]),
        (-1.2, 2.9, [-2, 0, 2, 4]),
        (12_300, 18_000, [12_000, 14_000, 16_000, 18_000]),
    ],
)
def test_nice_ticks(low, high, expected):
    assert nice_ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(("low", "high"), [(0, 0), (5, 5), (-3e-9, -3e-9), (1e6, 1e6), (-1e-3, 1e-3), (1, 1 + 1e-6)])
def test_nice_ticks_always_span_the_data(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low <= high <= ticks[-1]
    assert ticks[-1] > ticks[0]
    assert 2 <= len(ticks) <= 8


def test_number():
    assert [
        number(x) for x in (0, 0.12346, 1234.0, 12_345, -0.00012, 1e-5)
    ] == "0 0.1235 1234 12.35k -1.2e-4 1e-5".split()


def test_running_mean():
    assert running_mean([2, 4, 6, 8], 2) == [2, 3, 5, 7]
    assert running_mean([2, 4, 6], 1) == [2, 4, 6]


def elements(svg, tag):
    return [e for e in ET.fromstring(svg).iter() if e.tag == tag]


def test_curve_runs_corner_to_corner():
    svg = line_chart([Series("x", [(0, 0.0), (10, 1.0)])], "title")
    (curve,) = elements(svg, "polyline")
    left, right, low, high = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, TOP
    assert curve.get("points") == f"{left:.1f},{low:.1f} {right:.1f},{high:.1f}"
    assert [c.find("title").text for c in elements(svg, "circle")] == ["x, step 0: 0", "x, step 10: 1"]


def test_names_are_escaped_and_single_points_drawn():
    svg = line_chart([Series('<b>&"', [(3, 2.0)])], "a < b")
    assert ET.fromstring(svg).get("aria-label") == 'a < b: <b>&" over training steps'
    assert len(elements(svg, "circle")) == 1


def test_long_curves_are_thinned_smoothed_and_keep_their_last_point():
    points = [(i, math.sin(i)) for i in range(10_001)]
    svg = line_chart([Series("x", points)], "t")
    raw, mean = elements(svg, "polyline")
    assert "raw" in raw.get("class")
    assert "raw" not in mean.get("class")
    assert len(raw.get("points").split()) <= 402
    assert raw.get("points").split()[-1].startswith(f"{WIDTH - RIGHT:.1f},")
    assert len(svg) < 40_000
