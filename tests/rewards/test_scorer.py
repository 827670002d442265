import dataclasses
import types

import jax
import numpy as np
import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.arithmetic import make_arithmetic, sum_problem
from iiblpo_jax.data.task import boxed_task
from iiblpo_jax.rewards import together
from iiblpo_jax.rewards.scorer import Grades, Scorer
from iiblpo_jax.rewards.verifier import Job, Problem, Verifier


def math_problem(answer):
    return Problem(id=answer, question="?", answer=answer, task="math")


MATH = boxed_task("math", [], [])
ARITHMETIC = make_arithmetic(seed=0, train_size=1, heldout_size=1)


def test_exact_answers_start_no_worker():
    problem = sum_problem((6, 5, 3))
    with Scorer([ARITHMETIC]) as scorer:
        rewards, columns, counts = scorer.score([problem] * 3, ["6+5=11;11+3=14;#14", "#15", ""])
        assert scorer._pool._workers == []
    assert rewards.dtype == np.float32
    assert rewards.tolist() == [1.0, 0.0, 0.0]
    assert counts == {"timeouts": 0, "crashes": 0}
    assert set(columns) == {"verdict", "seconds"}
    for column in columns.values():
        assert column.dtype == np.float32 and column.shape == (3,) and np.isnan(column).all()


def test_verifiers_are_chosen_by_task_and_the_order_is_kept():
    half, fourteen = math_problem(r"\frac{1}{2}"), sum_problem((9, 5))
    problems = [half, fourteen, half, half, fourteen, half]
    responses = [r"\boxed{0.5}", "#14", r"\boxed{2}", "0.5", r"\boxed{14}", r"\boxed{\frac{1}{2}}"]
    with Scorer([MATH, ARITHMETIC], workers=2) as scorer:
        rewards, columns, counts = scorer.score(problems, responses)
    assert rewards.tolist() == [1.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    nan = np.nan  # no box, or the gold answer to the letter: decided without math-verify
    np.testing.assert_array_equal(columns["verdict"], [1.0, nan, 0.0, nan, nan, nan])
    assert (np.isfinite(columns["seconds"]) == np.isfinite(columns["verdict"])).all()
    assert counts == {"timeouts": 0, "crashes": 0}


def test_an_expression_that_would_fill_the_machine():
    hostile = r"\boxed{9^{9^{9^{9}}}+1}"
    with Scorer([MATH], workers=1, timeout_s=1.0) as scorer:
        rewards, _, counts = scorer.score([math_problem("7")] * 2, [hostile, r"\boxed{\sqrt{49}}"])
    assert rewards.tolist() == [0.0, 1.0]
    assert counts["timeouts"] + counts["crashes"] <= 1  # SymPy may also decline it on its own


def test_gym_answers_go_through_the_packages_scorer():
    pytest.importorskip("reasoning_gym")
    from iiblpo_jax.data.gym import make_gym

    task = make_gym("chain_sum", seed=0, train_size=2, heldout_size=2, max_terms=2)
    problem = task.train[0]
    with Scorer([task], workers=1) as scorer:
        responses = [f"I add. <answer>{problem.answer}</answer>", problem.answer, "<answer>x</answer>"]
        rewards, *_ = scorer.score([problem] * 3, responses)
    assert rewards[0] == 1.0
    assert rewards[1] == 0.0  # not in the tags
    assert rewards[2] < 0.1


@pytest.mark.parametrize("bad", [{"workers": 0}, {"timeout_s": 0.0}])
def test_an_impossible_pool_is_refused(bad):
    with pytest.raises(InputError, match="both must be positive"):
        Scorer([MATH], **bad)


@dataclasses.dataclass(frozen=True)
class Calls(Verifier):
    """Grades `sqrt 4` in a worker by calling math.sqrt(4.0)."""

    graders = ("math:sqrt", "time:sleep")

    def grade(self, problem, response):
        name, number = response.split()
        return Job({"sqrt": "math:sqrt", "sleep": "time:sleep"}[name], (float(number),))

    def answer(self, response):
        return response


CALLS = types.SimpleNamespace(name="calls", verifier=Calls())


def test_a_verdict_is_what_the_checker_said_and_seconds_are_the_workers():
    problem = Problem(id="0", question="?", answer="", task="calls")
    with Scorer([CALLS], workers=1, timeout_s=0.5) as scorer:
        rewards, columns, counts = scorer.score([problem] * 4, ["sqrt 4", "sqrt 0.25", "sqrt -1", "sleep 60"])
    assert rewards.tolist() == [1.0, 0.5, 0.0, 0.0]  # clipped to [0, 1]
    np.testing.assert_array_equal(columns["verdict"], [2.0, 0.5, np.nan, np.nan])
    assert counts == {"timeouts": 1, "crashes": 1}
    assert (columns["seconds"][:3] < 0.5).all() and 0.5 <= columns["seconds"][3] < 5.0


def test_several_processes_share_all_columns(monkeypatch):
    """Each of two processes grades every second response; both end up with what one process finds alone."""

    class Halves:
        has_own = False

        def check(self, counts, total):
            assert total == 5

        def score(self, problems, responses, *, of):
            values = np.array([float(response) for response in responses], np.float32)
            verdict = np.where(values > 2, np.nan, values)
            return Grades(values / 8, {"verdict": verdict, "seconds": values}, {"timeouts": len(values), "crashes": 1})

    def from_process(index):
        monkeypatch.setattr(jax, "process_index", lambda: index)
        sent = []
        monkeypatch.setattr(together.multihost_utils, "process_allgather", lambda x: sent.append(x) or all_of([x, x]))
        together.score_together(Halves(), list("abcde"), list("01234"))
        return sent[0]

    def all_of(shares):
        return jax.tree.map(lambda *x: np.stack(x), *shares)

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    shares = [from_process(0), from_process(1)]
    monkeypatch.setattr(together.multihost_utils, "process_allgather", lambda _: all_of(shares))
    rewards, columns, counts = together.score_together(Halves(), list("abcde"), list("01234"))
    assert rewards.tolist() == [0, 1 / 8, 2 / 8, 3 / 8, 4 / 8] and rewards.dtype == np.float32
    np.testing.assert_array_equal(columns["verdict"], [0, 1, 2, np.nan, np.nan])
    np.testing.assert_array_equal(columns["seconds"], [0, 1, 2, 3, 4])
    assert counts == {"timeouts": 5, "crashes": 2}
