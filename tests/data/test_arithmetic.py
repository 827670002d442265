import re
from collections import Counter

import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.arithmetic import ALPHABET, is_heldout, make_arithmetic, sum_problem


def questions(problems):
    return {problem.question for problem in problems}


def test_a_worked_sum():
    problem = sum_problem((6, 5, 3))
    assert (problem.question, problem.answer) == ("6+5+3=", "14")
    assert problem.rationale == "6+5=11;11+3=14;#14"
    assert sum_problem((0, 0)).rationale == "0+0=0;#0"


def test_every_rationale_is_true_and_in_the_alphabet():
    for problem in make_arithmetic(seed=3, k_max=6, train_size=200, heldout_size=50).train:
        terms = [int(digit) for digit in problem.question[:-1].split("+")]
        assert problem.answer == str(sum(terms))
        *steps, final = problem.rationale.split(";")
        assert len(steps) == len(terms) - 1
        assert final == f"#{sum(terms)}"
        for step in steps:
            a, b, c = map(int, re.fullmatch(r"(\d+)\+(\d)=(\d+)", step).groups())
            assert a + b == c
        assert set(problem.question + problem.rationale) <= set(ALPHABET)


def test_heldout_is_disjoint_from_training_of_every_seed():
    tasks = [make_arithmetic(seed=seed) for seed in range(3)]
    heldout = questions(tasks[0].heldout)
    assert len(heldout) == len(tasks[0].heldout) == 512  # no repeats
    for task in tasks:
        assert questions(task.heldout) == heldout
        assert not heldout & questions(task.train)


def test_seed_decides_the_training_set():
    first, again, other = (make_arithmetic(seed=seed, train_size=100).train for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_terms_are_uniform_in_training():
    counts = Counter(problem.metadata["terms"] for problem in make_arithmetic(seed=0, train_size=3000).train)
    assert set(counts) == {2, 3, 4}
    assert all(abs(count - 1000) < 120 for count in counts.values())  # 4.6 standard deviations of 25.8


def test_two_terms_alone_hold_out_what_there_is():
    task = make_arithmetic(seed=0, k_min=2, k_max=2)
    every = {f"{a}+{b}=" for a in range(10) for b in range(10)}
    assert questions(task.heldout) == {question for question in every if is_heldout(question)}
    assert questions(task.train) == {question for question in every if not is_heldout(question)}
    assert len(task.train) == 8192


def test_sums_of_any_length_have_their_held_out_ones():
    task = make_arithmetic(seed=0, k_min=17, k_max=21, train_size=50, heldout_size=100)
    terms = Counter(problem.metadata["terms"] for problem in task.heldout)
    assert terms == dict.fromkeys(range(17, 22), 20)
    assert len(questions(task.heldout)) == 100 and all(is_heldout(q) for q in questions(task.heldout))
    for problem in task.heldout:
        assert int(problem.answer) == sum(map(int, problem.question.removesuffix("=").split("+")))


@pytest.mark.parametrize(
    "bad", [{"k_min": 1}, {"k_max": 41}, {"k_min": 4, "k_max": 3}, {"train_size": 0}, {"heldout_size": 0}]
)
def test_impossible_options(bad):
    with pytest.raises(InputError, match="arithmetic with"):
        make_arithmetic(seed=0, **bad)
