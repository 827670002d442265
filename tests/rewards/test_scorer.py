import numpy as np
import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.arithmetic import make_arithmetic, sum_problem
from iiblpo_jax.data.task import boxed_task
from iiblpo_jax.rewards.scorer import Scorer
from iiblpo_jax.rewards.verifier import Problem


def math_problem(answer):
    return Problem(id=answer, question="?", answer=answer, task="math")


MATH = boxed_task("math", [], [])
ARITHMETIC = make_arithmetic(seed=0, train_size=1, heldout_size=1)


def test_exact_answers_start_no_worker():
    problem = sum_problem((6, 5, 3))
    with Scorer([ARITHMETIC]) as scorer:
        rewards, counts = scorer.score([problem] * 3, ["6+5=11;11+3=14;#14", "#15", ""])
        assert scorer._pool._workers == []
    assert rewards.dtype == np.float32
    assert rewards.tolist() == [1.0, 0.0, 0.0]
    assert counts == {"timeouts": 0, "crashes": 0}


def test_verifiers_are_chosen_by_task_and_the_order_is_kept():
    half, fourteen = math_problem(r"\frac{1}{2}"), sum_problem((9, 5))
    problems = [half, fourteen, half, half, fourteen, half]
    responses = [r"\boxed{0.5}", "#14", r"\boxed{2}", "0.5", r"\boxed{14}", r"\boxed{\frac{1}{2}}"]
    with Scorer([MATH, ARITHMETIC], workers=2) as scorer:
        rewards, counts = scorer.score(problems, responses)
    assert rewards.tolist() == [1.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    assert counts == {"timeouts": 0, "crashes": 0}


def test_an_expression_that_would_fill_the_machine():
    hostile = r"\boxed{9^{9^{9^{9}}}+1}"
    with Scorer([MATH], workers=1, timeout_s=1.0) as scorer:
        rewards, counts = scorer.score([math_problem("7")] * 2, [hostile, r"\boxed{\sqrt{49}}"])
    assert rewards.tolist() == [0.0, 1.0]
    assert counts["timeouts"] + counts["crashes"] <= 1  # SymPy may also decline it on its own


def test_gym_answers_go_through_the_packages_scorer():
    pytest.importorskip("reasoning_gym")
    from iiblpo_jax.data.gym import make_gym

    task = make_gym("chain_sum", seed=0, train_size=2, heldout_size=2, max_terms=2)
    problem = task.train[0]
    with Scorer([task], workers=1) as scorer:
        responses = [f"I add. <answer>{problem.answer}</answer>", problem.answer, "<answer>x</answer>"]
        rewards, _ = scorer.score([problem] * 3, responses)
    assert rewards[0] == 1.0
    assert rewards[1] == 0.0  # not in the tags
    assert rewards[2] < 0.1


@pytest.mark.parametrize("bad", [{"workers": 0}, {"timeout_s": 0.0}])
def test_an_impossible_pool_is_refused(bad):
    with pytest.raises(InputError, match="both must be positive"):
        Scorer([MATH], **bad)
