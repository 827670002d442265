import dataclasses

import pytest
from ml_collections import ConfigDict

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.arithmetic import make_arithmetic, sum_problem
from iiblpo_jax.data.registry import asked_as
from iiblpo_jax.data.task import Task, boxed_task, render
from iiblpo_jax.defaults import default_config
from iiblpo_jax.rewards.math import Math
from iiblpo_jax.rewards.verifier import Problem

HALF = Problem(id="1", question="What is {1}/2?", answer=r"\frac{1}{2}", task="math")
REQUEST = "What is {1}/2?\nPlease reason step by step, and put your final answer within \\boxed{}."


def test_a_chat_prompt_is_the_papers(characters):
    ids = render(boxed_task("math", [HALF], []), HALF, characters(chat=True))
    assert characters(chat=True).decode(ids) == f"<system>You are a helpful assistant.<user>{REQUEST}<assistant>"


def test_without_a_system_message(characters):
    task = dataclasses.replace(boxed_task("math", [HALF], []), system=None)
    assert characters(chat=True).decode(render(task, HALF, characters(chat=True))) == f"<user>{REQUEST}<assistant>"


def test_a_tokenizer_without_template_gets_plain_text(characters):
    task = boxed_task("math", [HALF], [])
    assert characters(chat=False).decode(render(task, HALF, characters(chat=False))) == REQUEST + "\n\n"


def test_plain_prompts_begin_as_the_tokenizer_begins_texts(characters):
    task, problem = make_arithmetic(seed=0, train_size=1, heldout_size=1), sum_problem((6, 5))
    assert render(task, problem, characters(chat=True)) == [ord(c) for c in "6+5="]
    assert render(task, problem, characters(chat=True, bos=True)) == [1] + [ord(c) for c in "6+5="]


def test_cue_and_answer_make_a_final_answer_that_the_verifier_accepts():
    from iiblpo_jax.rewards import exact, math

    task = boxed_task("math", [HALF], [])
    assert math.last_boxed("some reasoning" + task.cue + task.answer_text(HALF)) == HALF.answer
    assert task.marker in task.cue
    arithmetic, problem = make_arithmetic(seed=0, train_size=1, heldout_size=1), sum_problem((6, 5))
    assert exact.grade(arithmetic.cue + arithmetic.answer_text(problem), "11", marker=arithmetic.marker) == 1.0


@pytest.mark.parametrize("verifier", ["exact", "maths", None, Math])
def test_a_verifier_that_is_none_is_refused_where_the_task_is_made(verifier):
    with pytest.raises(InputError, match=r"task 'mine' has the verifier .*; use a function of .*iiblpo_jax\.rewards"):
        Task(name="mine", train=[], heldout=[], verifier=verifier, cue="#", marker="#")


def test_what_a_config_says_of_chats():
    """`task.system` and `task.template_args` reach the tasks that are chats, in training and in evaluation."""
    section = default_config().task
    chat, plain = boxed_task("math", [HALF], []), make_arithmetic(seed=0, train_size=1, heldout_size=1)
    assert asked_as(chat, section) == chat and asked_as(plain, section) == plain
    section.system, section.template_args = False, ConfigDict({"enable_thinking": False})
    told = asked_as(chat, section)
    assert (told.system, told.template_args) == (None, {"enable_thinking": False})
    assert asked_as(plain, section) == plain
