import random
from fractions import Fraction

import pytest

from iiblpo_jax.environments.calculator import LONGEST, Calculator, Wrong, evaluate


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2+3*4", 14),
        ("(2+3)*4", 20),
        ("2-3-4", -5),
        ("8/4/2", 1),
        ("7/2", Fraction(7, 2)),
        ("-3*-2", 6),
        ("1.5 * 4", 6),
        ("--2", 2),
        ("((((1))))", 1),
    ],
)
def test_values_by_hand(expression, value):
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "2+",
        "2 3",
        "(2",
        "2)",
        "1/0",
        "1/(2-2)",
        "2**3",
        "__import__('os')",
        "9" * (LONGEST + 1),
        "(" * 40 + "1",
        "1e9",
    ],
)
def test_what_has_no_value_is_wrong(wrong):
    with pytest.raises(Wrong):
        evaluate(wrong)


def test_whatever_python_makes_of_it():
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(f"{rng.choice('+-*')}{rng.randint(1, 99)}" for _ in range(rng.randint(1, 6))).lstrip("*")
        assert evaluate(text) == eval(text)


@pytest.mark.parametrize(
    ("calculator", "text", "answer"),
    [
        (Calculator(), "3+4=", "7;"),
        (Calculator(), "so 12*3=", "36;"),
        (Calculator(), "#7;1/3=", "1/3;"),
        (Calculator(), "=", "error;"),
        (Calculator(opening="<calc>", turn_end="</calc>", before="[", after="]"), "x<calc>2*(1+1)</calc>", "[4]"),
    ],
)
def test_the_last_expression_of_a_turn_is_answered(calculator, text, answer):
    state, observation, reward, done = calculator.step(calculator.reset(None), text)
    assert (state, observation, reward, done) == (1, answer, 0.0, False)
