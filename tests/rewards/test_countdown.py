"""The verifier of worked chains against a second one that only splits text, and against text that means harm."""

import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iiblpo_jax.rewards.countdown import grade, plan

NUMBERS, TARGET = (3, 9, 4), "8"
DIGITS = set("123456789")


@pytest.mark.parametrize(
    ("response", "reward", "name"),
    [
        ("9-4=5;5+3=8;#8", 1.0, "9-4+3"),
        ("3+9=12;12-4=8;#8", 1.0, "3+9-4"),
        ("3-4=-1;-1+9=8;#8", 1.0, "3-4+9"),  # a negative result on the way
        (" 9-4=5;5+3=8;#8\n", 1.0, "9-4+3"),
        ("9-4=5;5+3=8;#9", 0.0, "9-4+3"),  # says another value than it found
        ("9-4=5;5-3=2;#2", 0.0, "9-4-3"),  # true, but misses
        ("9-4=5;5-3=2;#8", 0.0, "9-4-3"),  # misses and says that it does not
        ("9-4=6;6+3=9;#8", 0.0, "9-4+3"),  # a slip in the first step
        ("9-4=5;5+3=9;#8", 0.0, "9-4+3"),  # in the last
        ("9-4=5;6+3=9;#9", 0.0, None),  # goes on with another number
        ("9-1=8;#8", 0.0, "9-1"),  # other numbers
        ("9-4=5;#5", 0.0, "9-4"),  # too few
        ("9-4=5;5+3=8;8+9=17;17-9=8;#8", 0.0, "9-4+3+9-9"),  # too many
        ("9-4=5;5+03=8;#8", 0.0, None),
        ("9-4=5;5+3=8;#08", 0.0, None),
        ("9-4=5;5+3=8;#8#8", 0.0, None),
        ("9-4=5;5+3=8;", 0.0, None),
        ("9-4=5; 5+3=8;#8", 0.0, None),
        ("9-4=5;5+3=8;#８", 0.0, None),  # another script's digit
        ("#8", 0.0, None),
        ("8", 0.0, None),
        ("", 0.0, None),
    ],
)
def test_by_hand(response, reward, name):
    assert grade(response, NUMBERS, TARGET) == reward
    assert plan(response) == name


def by_splitting(response: str, numbers, target: str) -> float:
    """The rules once more, without regular expressions."""
    *steps, final = response.split(";")
    if not steps or final != f"#{target}":
        return 0.0
    used, value = [], None
    for step in steps:
        left, found, right = step.partition("=")
        cut = max(left.rfind("+"), left.rfind("-"))
        if not found or cut < 1:
            return 0.0
        operand, sign, number = left[:cut], left[cut], left[cut + 1 :]
        if value is None and operand in DIGITS:
            used, value = [operand], operand
        if operand != value or number not in DIGITS:
            return 0.0
        value = str(int(value) + int(number) * (1 if sign == "+" else -1))
        used.append(number)
        if right != value:
            return 0.0
    return float(value == target and sorted(used) == sorted(map(str, numbers)))


@st.composite
def attempts(draw):
    """Numbers, a target, and a chain that is right or has been damaged in up to two places."""
    numbers = draw(st.lists(st.integers(1, 9), min_size=2, max_size=5))
    order = draw(st.permutations(numbers))
    value, text = order[0], ""
    for number in order[1:]:
        sign = draw(st.sampled_from((1, -1)))
        text += f"{value}{'+' if sign > 0 else '-'}{number}={value + sign * number};"
        value += sign * number
    text += f"#{value}"
    for _ in range(draw(st.integers(0, 2))):
        place = draw(st.integers(0, len(text) - 1))
        text = text[:place] + draw(st.sampled_from(["", *"0123456789+-=;#"])) + text[place + draw(st.integers(0, 1)) :]
        if not text:
            break
    return text, numbers, str(draw(st.sampled_from((value, value, value, value + 1))))


@settings(max_examples=500, deadline=None)
@given(attempts())
def test_agrees_with_the_second_verifier(attempt):
    text, numbers, target = attempt
    assert grade(text, numbers, target) == by_splitting(text, numbers, target)


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("0123456789+-=;#") | st.characters(), max_size=60))
def test_any_text_is_read_without_an_error(text):
    assert grade(text, NUMBERS, TARGET) in (0.0, 1.0)
    assert plan(text) is None or isinstance(plan(text), str)


@pytest.mark.parametrize(
    "unit", ["9-4=5;", "9-4=5;5+3=8;#8", "1", "-", "+1", "#8", "9" * 50 + "+1=2;", "\x00", " ", "\ud800", "١+٢=٣;"]
)
def test_megabytes_score_nothing(unit):
    response = unit * (1_000_000 // len(unit))
    assert grade(response + "#8", NUMBERS, TARGET) == 0.0
    assert plan(response + "#8") is None


def test_random_noise_in_the_alphabet_scores_nothing():
    rng = random.Random(0)
    for _ in range(2000):
        text = "".join(rng.choice(string.digits + "+-=;#") for _ in range(rng.randint(0, 40)))
        assert grade(text, NUMBERS, TARGET) == by_splitting(text, NUMBERS, TARGET) == 0.0
