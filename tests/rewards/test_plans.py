"""Plans as numbers: equal where the task says that two responses are one solution."""

import numpy as np

from iiblpo_jax.data.countdown import make_countdown
from iiblpo_jax.rewards import together
from iiblpo_jax.rewards.plans import plan_ids
from iiblpo_jax.rewards.scorer import Scorer
from iiblpo_jax.rewards.verifier import Problem

ANSWERS = ["9-4=5;5+3=8;#8", "9+3=12;12-4=8;#8", " 9-4=5;5+3=8;#7 ", "nonsense", "9-4=5;6+3=9;#9", ""]


def problem(task):
    return Problem(id="0", question="?", answer="8", task=task, metadata={"numbers": [9, 4, 3]})


def test_equal_plans_have_equal_numbers_and_malformed_ones_their_own():
    plan = make_countdown(seed=0, train_size=1, heldout_size=1).plan
    found = plan_ids({"countdown": plan}, [problem("countdown")] * 6, ANSWERS)
    assert found.tolist() == [0, 1, 0, -1, -1, -1] and found.dtype == np.float32


def test_tasks_do_not_share_their_plans():
    plans = {"one": str.strip, "other": str.strip}
    problems = [problem("one"), problem("other"), problem("one")]
    assert plan_ids(plans, problems, ["a", "a", " a"]).tolist() == [0, 1, 0]


def test_it_is_a_column_where_it_is_asked_for():
    task = make_countdown(seed=0, train_size=1, heldout_size=1)
    with Scorer([task]) as scorer:
        plain = together.score_together(scorer, [problem("countdown")] * 6, ANSWERS)
        grades = together.score_together(scorer, [problem("countdown")] * 6, ANSWERS, plans={"countdown": task.plan})
    assert set(plain.columns) == {"verdict", "seconds"}
    assert grades.columns["plan"].tolist() == [0, 1, 0, -1, -1, -1]
    assert grades.rewards.tolist() == plain.rewards.tolist() == [1, 1, 0, 0, 0, 0]
