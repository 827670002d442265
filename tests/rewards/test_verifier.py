"""What every kind of verifier promises, and that the package stands on its own."""

from pathlib import Path

import pytest

from iiblpo_jax import rewards
from iiblpo_jax.rewards.countdown import Countdown
from iiblpo_jax.rewards.exact import Exact
from iiblpo_jax.rewards.gym import Gym
from iiblpo_jax.rewards.math import Math
from iiblpo_jax.rewards.verifier import Job, Problem

HALF = Problem(id="0", question="?", answer=r"\frac{1}{2}", task="t")
CHAIN = Problem(id="0", question="?", answer="8", task="t", metadata={"numbers": [9, 4, 3]})
MADE = Problem(id="0", question="?", answer="", task="t", metadata={"dataset": "d", "options": {"b": 1}, "entry": {}})


@pytest.mark.parametrize(
    ("verifier", "problem", "response", "decision"),
    [
        (Exact(marker="#"), CHAIN, "1+7=8;#8", 1.0),
        (Exact(marker=" "), CHAIN, "it is 9", 0.0),
        (Countdown(), CHAIN, "9-4=5;5+3=8;#8", 1.0),
        (Countdown(), CHAIN, "#8", 0.0),
        (Math(), HALF, r"\boxed{ \frac{1}{2} }", 1.0),
        (Math(), HALF, "0.5", 0.0),
        (Math(), HALF, r"\boxed{0.5}", Job("iiblpo_jax.rewards.math:grade", (r"\frac{1}{2}", "0.5"))),
        (Gym(), MADE, "5", 0.0),
        (Gym(), MADE, "<answer> 5</answer>", Job("iiblpo_jax.rewards.gym:grade", ("d", '{"b": 1}', {}, "5"))),
    ],
)
def test_a_grade_is_a_number_or_a_job_for_a_grader_that_was_announced(verifier, problem, response, decision):
    assert verifier.grade(problem, response) == decision
    assert not isinstance(decision, Job) or decision.grader in verifier.graders


@pytest.mark.parametrize(
    ("verifier", "gold", "found"),
    [
        (Exact(marker="#"), "anything", True),
        (Exact(marker="#"), " ", False),
        (Countdown(), "", False),
        (Math(), "-3/4", True),
        (Math(), "1" * 1025, False),
        (Math(), r"\pi", Job("iiblpo_jax.rewards.math:parses", (r"\pi",))),
        (Gym(), "", True),  # many answers are right, and none is gold
    ],
)
def test_gold_answers_that_can_be_read(verifier, gold, found):
    assert verifier.reads(gold) == found
    assert not isinstance(found, Job) or found.grader in verifier.readers


def test_equal_settings_make_equal_verifiers():
    assert Exact(marker="#") == Exact(marker="#") != Exact(marker=" ")
    assert {Math(), Math(), Gym()} == {Gym(), Math()}


def test_nothing_in_rewards_knows_the_data_package():
    for path in Path(rewards.__file__).parent.rglob("*.py"):
        module, *_ = path.read_text().split('if __name__ == "__main__":')  # a program may; a worker is none
        assert "iiblpo_jax.data" not in module, path
