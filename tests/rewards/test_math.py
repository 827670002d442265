import time
from fractions import Fraction
from pathlib import Path

import pytest

from iiblpo_jax.rewards import math
from iiblpo_jax.rewards.math.numbers import rational
from iiblpo_jax.rewards.math.spelling import spell
from iiblpo_jax.rewards.math.units import unit_of

RIGHT, WRONG = " ≡ ", " ≢ "


def sections() -> dict[str, list[tuple[str, str, float]]]:
    """The judged pairs of pairs.txt: section -> (gold, answer, verdict)."""
    found: dict[str, list[tuple[str, str, float]]] = {}
    title = ""
    for line in (Path(__file__).parent / "pairs.txt").read_text().splitlines():
        if line.startswith("# "):
            title = line[2:]
        elif line:
            sign = RIGHT if RIGHT in line else WRONG
            gold, answer = line.split(sign)
            found.setdefault(title, []).append((gold, answer, float(sign == RIGHT)))
    return found


PAIRS = sections()


@pytest.mark.parametrize("section", PAIRS)
def test_judged_pairs(section):
    wrong = [(gold, answer) for gold, answer, verdict in PAIRS[section] if math.grade(gold, answer) != verdict]
    assert not wrong


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
        (r"\boxed {5}", "5"),
        ("\\boxed\n{5}", "5"),
        (r"\boxed5", "5"),
        (r"\boxed\frac{1}{2}.", r"\frac{1}{2}"),
        (r"$\boxed\frac12$", r"\frac12"),
        (r"\boxed -\sqrt{2} is", r"-\sqrt{2}"),
        (r"\boxed\text{two words} and", r"\text{two words}"),
        (r"\(\boxed 7\)", "7"),
        (r"\framebox{3}", "3"),
        (r"\\boxed{5}", "5"),
        (r"\boxed{5}. I put my answer within \boxed{}.", "5"),
        (r"\boxed{5}, as asked in \boxed form", "5"),
        (r"\boxed{ }", None),
        (r"\boxed{1} \quad \text{and} \quad \boxed{-2}", "1, -2"),
        (r"$\boxed{1}$, $\boxed{2}$ and $\boxed{3}$.", "1, 2, 3"),
        (r"\(\boxed{1}\) or \(\boxed{2}\)", "1, 2"),
        (r"\boxed{5}, \boxed{5}", "5"),
        (r"First \boxed{4}. No: \boxed{5}", "5"),
        (r"\boxed{4} so \boxed{5}", "5"),
        (r"\boxed{4} and therefore \boxed{5}", "5"),
        (r"boxed{5}", None),
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


def test_extract_decides_numbers_without_a_worker():
    assert math.extract(r"\boxed{71}", "72") == math.extract(r"\boxed{0.333}", "1/3") == 0.0
    assert math.extract(r"\boxed{72.0}", "72") == math.extract(r"\boxed{2/6}", "1/3") == 1.0
    assert math.extract(r"\boxed{1/0}", "1") == 0.0
    assert math.extract(r"\boxed{1 1/2}", "11/2") == "1 1/2"  # blanks between digits are not nothing


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
        (r"f(x)=-1$,$f(x)=x+1", True),
        (r"$69$,$84$", True),
        ("4.5e33", True),
        (r"1\pm\sqrt{19}", True),
        (r"2516_8", True),
        (r"x \equiv 3 \pmod{7}", True),
        (r"(-\infty, 1) \cup [3, \infty)", True),
        (r"\begin{pmatrix} 1 & x \\ 0 & \frac12 \end{pmatrix}", True),
    ],
)
def test_parses(gold, readable):
    assert math.parses(gold) is readable


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-.5", Fraction(-1, 2)),
        (r"\frac{-3}{4}", Fraction(-3, 4)),
        (r"3\frac{1}{4}", Fraction(13, 4)),
        (r"-1 1/2", Fraction(-3, 2)),
        (r"2\frac{3}{2}", None),  # an improper fraction makes no mixed number
        (r"0.1\overline{6}", Fraction(1, 6)),
        (r"0.\dot{1}4285\dot{7}", Fraction(1, 7)),
        (r"2.\overline{45}", Fraction(27, 11)),
        (r"0.1666\ldots", Fraction(1, 6)),
        (r"3.14159\ldots", None),
        (r"1.5\cdot 10^{-3}", Fraction(3, 2000)),
        ("6.02e23", 602 * 10**21),
        ("1e999999", None),  # too long to write down
        ("1/0", None),
        ("x", None),
    ],
)
def test_numbers_are_fractions(text, value):
    assert rational(text) == value


@pytest.mark.parametrize(
    ("text", "factor", "powers"),
    [
        (r"\text{cm}", Fraction(1, 100), (("length", 1),)),
        (r"\text{cm}^{2}", Fraction(1, 10**4), (("length", 2),)),
        (r"\text{square} \text{meters}", 1, (("length", 2),)),
        (r"\text{km/h}", Fraction(1000, 3600), (("length", 1), ("time", -1))),
        (r"\frac{\text{m}}{\text{s}^{2}}", 1, (("length", 1), ("time", -2))),
        (r"\text{miles} \text{per} \text{hour}", Fraction("1609.344") / 3600, (("length", 1), ("time", -1))),
        (r"\text{dollars}", 1, (("dollar", 1),)),
    ],
)
def test_units_convert(text, factor, powers):
    assert unit_of(text) == (factor, powers)


def test_nouns_are_no_units():
    assert unit_of(r"\text{apples}") is None
    assert unit_of(r"\text{cm} \text{apples}") is None


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        (r"\dfrac12", r"\frac{1}{2}"),
        ("½", r"\frac{1}{2}"),
        ("x²", "x^{2}"),
        (r"12\,345", "12345"),
        (r"12{,}345", "12345"),
        ("3*sqrt(13)", r"3\cdot \sqrt{13}"),
        ("2pi", r"2\pi"),
        (r"90^{\circ}", r"90\text{degree}"),
        (r"\text{8 cm}.", r"8 \text{cm}"),
        (r"\left( 1, 2 \right)", "(1, 2)"),
        (r"{6 \choose 2}", r"\binom{6}{2}"),
        ("2^10", "2^10"),  # LaTeX reads 2^1 0
        ("3*2^10", r"3\cdot 2^{10}"),  # which is not LaTeX
    ],
)
def test_spelling(text, spelled):
    assert spell(text) == spelled
