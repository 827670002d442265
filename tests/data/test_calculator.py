import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.arithmetic import make_arithmetic
from iiblpo_jax.data.calculator import make_calculator


def test_the_worked_text_is_what_the_calculator_says():
    task = make_calculator(seed=0, digits=2, train_size=64, heldout_size=16)
    for problem in [*task.train, *task.heldout]:
        steps = problem.rationale.split(";")
        state = task.environment.reset(problem)
        for step in steps[:-1]:
            asked, _, value = step.partition("=")
            state, observation, *_ = task.environment.step(state, f"{asked}=")
            assert observation == f"{value};"
        assert steps[-1] == f"#{problem.answer}" and eval(problem.question[:-1]) == int(problem.answer)
    assert {p.question for p in task.train}.isdisjoint(p.question for p in task.heldout)


def test_one_digit_sums_are_written_as_those_of_arithmetic():
    one, other = (make(seed=0, train_size=8, heldout_size=8) for make in (make_calculator, make_arithmetic))
    terms = {p.question: p.rationale for p in make_calculator(seed=1, train_size=4096, heldout_size=8).train}
    assert all(terms.get(p.question, p.rationale) == p.rationale for p in other.train)
    assert (one.cue, one.marker, one.template) == (other.cue, other.marker, other.template)


def test_refusals():
    with pytest.raises(InputError, match="choose 2 <= k_min"):
        make_calculator(seed=0, digits=0)
