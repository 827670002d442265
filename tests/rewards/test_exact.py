import pytest

from iiblpo_jax.rewards import exact


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("6+5=11;11+3=14;#14", 1.0),
        ("#13;#14", 1.0),  # the last marker counts
        ("#14;#13", 0.0),
        ("# 14 \n", 1.0),
        ("#14;", 0.0),  # anything more than the answer is another answer
        ("#014", 0.0),
        ("14", 0.0),  # no marker, no answer
        ("", 0.0),
    ],
)
def test_answer_after_the_last_marker(response, reward):
    assert exact.grade(response, "14", marker="#") == reward


@pytest.mark.parametrize(
    ("response", "reward"),
    [(" 42\nQ: 1 + 1 = ?\nA: 2", 1.0), ("42", 1.0), (" 4 2", 0.0), (" -42", 0.0), (" 142", 0.0), (" many", 0.0)],
)
def test_first_integer_with_a_blank_marker(response, reward):
    assert exact.grade(response, "42", marker=" ") == reward
