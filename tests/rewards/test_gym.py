import inspect
import re

import pytest

from iiblpo_jax.rewards import gym
from iiblpo_jax.rewards.verifier import Job, Problem


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


PROBABILITY = {"rational": {"numerator": 5, "denominator": 16}}
UNLIKELY = {"rational": {"numerator": 1, "denominator": 2**15}}


@pytest.mark.parametrize(
    ("dataset", "entry", "right", "wrong"),
    [
        ("game_of_life_halting", {"answer": "False"}, ["False", " false"], ["True", "x", "0", ""]),
        ("coin_flip", {"metadata": PROBABILITY}, ["0.3125", "5/16", "0.31251", " .3125"], ["0", "0.3", "1/0", "5:16"]),
        ("coin_flip", {"metadata": UNLIKELY}, ["1/32768", "3.051757812e-05", "0.0000305"], ["0", "0.0", "1e-4"]),
        ("puzzle24", {"metadata": {"numbers": [8, 5, 10, 6]}}, ["10*(8 - 5) - 6"], ["6+6+6+6", "8+10+6", "24"]),
    ],
)
def test_scorers_that_pay_one_answer_to_every_question_are_repaired(dataset, entry, right, wrong):
    """The package's own give 1.0 to "x", to "0", and to "6+6+6+6"."""
    pytest.importorskip("reasoning_gym")
    entry = {"answer": ""} | entry
    entry["metadata"] = {"source_dataset": dataset} | entry.get("metadata", {})
    assert [gym.grade(dataset, "{}", entry, answer) for answer in right] == [1.0] * len(right)
    assert not any(gym.grade(dataset, "{}", entry, answer) for answer in wrong)
    assert not any(gym.grade("composite", "{}", entry, answer) for answer in wrong)


def test_a_scorer_that_stumbles_over_an_answer_gives_nothing_for_it():
    class Strict:
        """Wants a number, and cannot do anything with an entry without one."""

        def score_answer(self, answer, entry):
            return float(int(answer) == int(entry["answer"]))

    assert gym.scored(Strict(), "7", {"answer": "7"}) == 1.0
    assert gym.scored(Strict(), "seven", {"answer": "7"}) == 0.0
    with pytest.raises(ValueError, match="gold"):
        gym.scored(Strict(), "seven", {"answer": "gold"})


def test_workers_build_the_generators_that_they_grade_by():
    pytest.importorskip("reasoning_gym")
    made = ("chain_sum", gym.as_json({"max_terms": 2}))
    assert gym.Gym(made=(made,)).preparations == ((gym.BUILDER, made),)
    gym.build.cache_clear()
    entry = gym.build(*made)[0]
    problem = Problem(
        id="0",
        question="?",
        answer="",
        task="gym",
        metadata={"dataset": "chain_sum", "options": {"max_terms": 2}, "entry": entry},
    )
    job = gym.Gym().grade(problem, f"<answer>{entry['answer']}</answer>")
    assert isinstance(job, Job) and job.grader == gym.GRADER
    assert gym.grade(*job.args) == 1.0
    assert gym.build.cache_info().misses == 1  # the job asked for the generator that was there


def test_a_member_of_a_composite_task_is_judged_by_its_own_rules():
    entry = {"metadata": {"source_dataset": "countdown"}}
    assert gym.grade("composite", "{}", entry, "exit()") == 0.0
