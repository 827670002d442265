"""What a knob allows and how it says so."""

import math

import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.defaults import KNOBS
from iiblpo_jax.config.knobs import knob


@pytest.mark.parametrize("key", KNOBS)
def test_every_default_is_allowed_and_explained(key):
    described = KNOBS[key]
    assert described.line(key, described.default) == ""
    assert len(described.doc) > 5 and not described.doc.endswith(".")


@pytest.mark.parametrize(
    ("described", "good", "bad", "range"),
    [
        (knob(4, "d", at_least=1), [1, 10**9], [0, -1, 1.0, True, "1", None, math.nan], "1 or more"),
        (knob(0.5, "d", at_least=0), [0, 0.0, 2, math.inf], [-1e-9, math.nan, "0", True, None], "0 or more"),
        (knob(0.5, "d", above=0), [1e-9, math.inf], [0.0, -1.0], "a number above 0"),
        (knob(0.5, "d", above=0, at_most=1), [0.1, 1], [0.0, 1.1], "a number above 0 and at most 1"),
        (knob(0.5, "d", above=0, below=9), [0.1, 8], [0.0, 9], "a number above 0 and below 9"),
        (knob(0.5, "d", at_least=0, below=1), [0.0, 0.9], [-0.1, 1.0], "a number from 0 to below 1"),
        (knob(2, "d", at_least=0, at_most=3), [0, 3], [-1, 4], "a number from 0 to 3"),
        (knob(1, "d", at_least=1, also=(-1,)), [-1, 1], [0, -2], "1 or more, or -1"),
        (knob("a", "d", choices=("a", "")), ["a", ""], ["b", None, 0, ("a",)], "one of a, ''"),
        (knob(None, "d", kind=float, at_least=0), [None, 0.0], [-1.0, "x"], "0 or more"),
        (knob((1,), "d", of=int, at_least=1), [(), (1, 2), [3]], [(0,), (1.0,), ("1",), 1], "1 or more"),
        (knob(True, "d"), [True, False], [1, 0.0, "True", None], ""),
        (knob("a", "d"), ["", "b"], [1, None, b"b"], ""),
        (knob({}, "d"), [{}, {"a": 1}], [(), None, "a"], ""),
        (
            knob("all", "d", pattern="all|[1-9]", wanted="all, or 1-9"),
            ["all", "3"],
            ["0", "al", 3],
            "all, or 1-9",
        ),
    ],
)
def test_ranges(described, good, bad, range):
    assert described.range == range
    for value in good:
        assert described.line("k", value) == "", value
    for value in bad:
        assert described.line("k", value).startswith(f"k = {value!r}; use "), value
        with pytest.raises(InputError, match=r"^k = "):
            described.check("k", value)


def test_messages():
    steps, points = knob(4, "d", at_least=1), knob("shared", "d", choices=("shared", "distinct"))
    assert steps.line("train.steps", 0) == "train.steps = 0; use 1 or more"
    assert steps.line("train.steps", 2.5) == "train.steps = 2.5; use a whole number, 1 or more"
    assert points.line("b", "shred") == "b = 'shred' (did you mean shared?); use one of shared, distinct"
    assert len(steps.line("train.steps", "9" * 10_000)) < 150


@pytest.mark.parametrize(
    ("described", "stored", "value"),
    [
        (knob(1.0, "d"), "inf", math.inf),
        (knob(1.0, "d"), 3, 3.0),
        (knob(1.0, "d"), 10**400, math.inf),
        (knob((), "d", of=int), [1, 2], (1, 2)),
        (knob({}, "d"), {"a": [1, [2]]}, {"a": (1, (2,))}),
        (knob(1, "d"), "inf", "inf"),  # no number: refused by whoever checks its kind
    ],
)
def test_values_out_of_json(described, stored, value):
    restored = described.restored(stored)
    assert (restored.to_dict() if described.kind is dict else restored) == value
    assert type(restored) is type(value) or described.kind is dict
