import time

import pytest

from iiblpo_jax.rewards import math


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{72}.", "72"),
        (r"\boxed{1} then \boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),  # an escaped brace needs no partner
        (r"\boxed{\text{a \} b}}", r"\text{a \} b}"),
        (r"\fbox{3}", "3"),
        (r"is $\boxed 5$", "5"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{9} and then \boxed{8", "9"),  # cut off by the length limit: the last closed one
        ("no box", None),
        (r"\boxed{", None),
        (r"\boxed", None),
        ("", None),
    ],
)
def test_last_boxed(text, content):
    assert math.last_boxed(text) == content


def test_a_box_longer_than_any_answer_is_not_one():
    assert math.last_boxed(r"\boxed{" + "1" * math.MAX_CHARS + "}") == "1" * math.MAX_CHARS
    assert math.last_boxed(r"\boxed{" + "1" * (math.MAX_CHARS + 1) + "}") is None


def test_megabytes_are_read_in_a_moment():
    start = time.perf_counter()
    assert math.extract("x" * 5_000_000 + r"\boxed{5}", "5") == 1.0
    assert math.extract(r"\boxed{" * 1_000_000, "5") == 0.0
    assert math.extract("{" * 5_000_000, "5") == 0.0
    assert time.perf_counter() - start < 2.0


def test_extract_decides_what_it_can():
    assert math.extract("no box", "5") == 0.0
    assert math.extract(r"\boxed{}", "5") == 0.0
    assert math.extract(r"\boxed{ \frac {1}{2} }", r"\frac{1}{2}") == 1.0
    assert math.extract(r"\boxed{0.5}", r"\frac{1}{2}") == "0.5"


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\frac{1}{2}", "0.5"),
        (r"\frac12", "1/2"),
        (r"\frac{1}{1+\frac{1}{2}}", r"\frac{2}{3}"),
        (r"2\sqrt{2}", r"\sqrt{8}"),
        (r"50\%", "50"),
        (r"50\%", "0.5"),
        (r"5\text{ cm}", "5"),
        ("5", r"5 \text{ cm}"),
        (r"90^\circ", "90"),
        (r"\{1,2\}", r"\{2,1\}"),
        ("1, 2", "2, 1"),
        ("1000", "1,000"),
        ("073", "73"),
        ("5", "x = 5"),
        (r"\text{east}", "east"),
        (r"[1,2)", r"[1, 2)"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"),
    ],
)
def test_equal_answers(gold, answer):
    assert math.grade(gold, answer) == 1.0


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("7", "8"),
        (r"\frac{1}{3}", "0.33"),
        (r"\{1,2\}", r"\{1,3\}"),
        (r"\{1,2\}", "1"),
        (r"(1,2)", r"(2,1)"),
        (r"[1,2)", r"(1,2)"),
        (r"\text{east}", "west"),
        ("5", "-5"),
        ("5", r"\frac{"),
    ],
)
def test_different_answers(gold, answer):
    assert math.grade(gold, answer) == 0.0


@pytest.mark.parametrize(
    ("gold", "readable"),
    [
        ("12", True),
        (r"x \in [-2,7]", True),
        (r"\text{June 20}", True),
        ("", False),
        ("???", False),
        (r"\frac{1}{", False),
    ],
)
def test_parses(gold, readable):
    assert math.parses(gold) is readable
