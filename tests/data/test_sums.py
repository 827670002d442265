import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.sums import make_sums
from iiblpo_jax.data.task import render


def operands(problems):
    return {tuple(map(int, problem.question.split(" + "))) for problem in problems}


def test_the_prompt_and_its_answer(characters):
    task = make_sums(seed=0)
    problem = next(problem for problem in task.train if problem.question == task.train[0].question)
    a, b = map(int, problem.question.split(" + "))
    assert characters(chat=True).decode(render(task, problem, characters(chat=True))) == f"Q: {a} + {b} = ?\nA:"
    assert (problem.answer, problem.rationale) == (str(a + b), f" {a + b}")
    assert task.cue + task.answer_text(problem) == f" {a + b}"


def test_split_is_disjoint_also_for_mirrored_sums_and_covers_everything():
    task = make_sums(seed=0, low=1, high=9, heldout_size=20)
    train, heldout = operands(task.train), operands(task.heldout)
    assert len(task.heldout) == len(heldout) == 20
    assert not train & heldout
    assert not {(b, a) for a, b in train} & heldout
    assert len(train) + len(heldout) in (80, 81)  # a mirror image may be left out to hit the size


def test_the_split_does_not_depend_on_the_seed_and_the_order_does():
    first, other = make_sums(seed=0), make_sums(seed=1)
    assert first.heldout == other.heldout
    assert operands(first.train) == operands(other.train)
    assert first.train != other.train


@pytest.mark.parametrize("bad", [{"low": 5, "high": 4}, {"heldout_size": 0}, {"low": 1, "high": 3, "heldout_size": 9}])
def test_impossible_options(bad):
    with pytest.raises(InputError, match="sums with"):
        make_sums(seed=0, **bad)
