import inspect
import re

import pytest

from iiblpo_jax.rewards import gym


def test_extract_the_last_closed_answer():
    assert gym.extract("<answer>1</answer> no: <answer> 2 </answer>.") == "2"
    assert gym.extract("<answer>1</answer> then <answer>2") == "1"
    assert gym.extract("2") is None
    assert gym.extract("</answer>2<answer>") is None
    assert gym.extract("<answer>" + "1" * 1_000_000 + "</answer>") is None


def test_the_packages_own_scorer():
    reasoning_gym = pytest.importorskip("reasoning_gym")
    entry = reasoning_gym.create_dataset("chain_sum", seed=1, size=1, max_terms=2)[0]
    assert gym.grade("chain_sum", '{"max_terms": 2}', entry, entry["answer"]) == 1.0
    assert gym.grade("chain_sum", '{"max_terms": 2}', entry, "no number") < 0.1


@pytest.mark.parametrize(
    ("dataset", "answer", "harmless"),
    [
        ("countdown", "(3 + 4) * 25 - 1/2", True),
        ("countdown", "3.5 - .5", True),
        ("simple_integration", "-34*x**8/15 - 5*x/4 + exp(x)*Abs(y1) + C", True),
        ("countdown", "__import__('os')", False),
        ("countdown", "exec(3)", False),
        ("countdown", "x.y", False),
        ("countdown", "(1).real", False),
        ("countdown", "open(1)", False),
        ("countdown", "chr(49)", False),
        ("countdown", "１+1", False),
        ("countdown", "[1]", False),
        ("countdown", "1" * 20_000 + "!", False),
        ("n_queens", "_ Q\nQ _", True),
        ("binary_matrix", "[[0, 1], [1, 0]]", True),
        ("binary_matrix", "[[exit(0)]]", False),
        ("chain_sum", "(anything)", True),
    ],
)
def test_answers_that_would_be_run_must_be_expressions(dataset, answer, harmless):
    assert gym.harmless(dataset, answer) is harmless


def test_the_tables_cover_every_scorer_that_evaluates_the_answer():
    factory = pytest.importorskip("reasoning_gym.factory")
    run = re.compile(r"\beval\(\s*answer|\bexec\(\s*answer|(?<!def )\bparse_expr\(\s*answer|sympify\(\s*answer")
    found = {
        name
        for name, (dataset, _) in factory.DATASETS.items()
        if run.search(inspect.getsource(dataset.score_answer)) and inspect.getmodule(dataset)
    }
    assert found == gym.EXPRESSIONS | gym.LITERALS


def test_a_member_of_a_composite_task_is_judged_by_its_own_rules():
    entry = {"metadata": {"source_dataset": "countdown"}}
    assert gym.grade("composite", "{}", entry, "exit()") == 0.0
