"""One row of every layout in the docstring's table, as the published datasets have it."""

# ruff: noqa: E501

import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.rows import FORMATS, BadGold, problem_of

DAPO_TEXT = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\nIn triangle $ABC$, what is $x$?\n\nGive "
    'it in degrees.\n\nRemember to put your answer on its own line after "Answer:".'
)
DAPO_QUESTION = "In triangle $ABC$, what is $x$?\n\nGive it in degrees."


def parse(name, row):
    return problem_of(name, FORMATS[name], "f row 1", "id", row)


@pytest.mark.parametrize(
    ("name", "row", "question", "answer"),
    [
        ("math", {"problem": "P", "level": "Level 5", "type": "Algebra", "solution": r"So $\boxed{\frac{3}{4}}$."}, "P", r"\frac{3}{4}"),
        ("math", {"problem": "P", "solution": r"\boxed{1}, no: \boxed{x^{2^{3}}}"}, "P", "x^{2^{3}}"),
        ("math", {"problem": "P", "solution": r"...", "answer": r"$2\sqrt{2}$", "subject": "Algebra"}, "P", r"2\sqrt{2}"),
        ("math500", {"problem": "P", "answer": r"\text{Evelyn}", "unique_id": "test/a/1.json"}, "P", r"\text{Evelyn}"),
        ("math500", {"problem": "P", "answer": r"(1,2)"}, "P", "(1,2)"),
        ("dapo_math", {"prompt": [{"role": "user", "content": DAPO_TEXT}], "reward_model": {"ground_truth": "34", "style": "rule"}}, DAPO_QUESTION, "34"),
        ("dapo_math", {"prompt": "In triangle?", "solution": "34"}, "In triangle?", "34"),  # open-r1's processed form
        ("dapo_math", {"problem": "P", "answer": 34}, "P", "34"),
        ("dapo_math", {"question": "P", "ground_truth": "-7"}, "P", "-7"),
        ("aime24", {"id": 60, "problem": "P", "solution": "s", "answer": "033", "url": "u", "year": "2024"}, "P", "033"),
        ("aime24", {"id": "2024-II-4", "problem": "P", "solution": "s", "answer": 33}, "P", "33"),
        ("aime24", {"id": 1, "problem": "P", "solution": r"\boxed{204}"}, "P", "204"),
        ("aime25", {"question": "P", "answer": r"336^\circ"}, "P", "336"),
        ("aime25", {"problem": "P", "answer": 70.0}, "P", "70"),
        ("olympiad", {"question": "P", "final_answer": [r"$\frac{1}{2}$"], "solution": ["s"], "context": None}, "P", r"\frac{1}{2}"),
        ("olympiad", {"question": "P", "final_answer": ["$1$", "$-3$"], "context": "Let $n$ be even."}, "Let $n$ be even.\nP", "1, -3"),
        ("olympiad", {"problem": "P", "answer": "5"}, "P", "5"),
        ("olympiad", {"question": "P", "final_answer": ["$69$,$84$"], "is_multiple_answer": True}, "P", "69,84"),
        ("aime24", {"prompt": [{"role": "user", "content": DAPO_TEXT}], "reward_model": {"ground_truth": "33", "style": "rule"}}, DAPO_QUESTION, "33"),  # DAPO's
        ("dapo_math", {"prompt": [{"role": "user", "content": [{"type": "text", "text": "P"}]}], "answer": "1"}, "P", "1"),
        ("math500", {"prompt": [{"role": "user", "content": "P"}], "reward_model": {"ground_truth": "x^2"}}, "P", "x^2"),
        ("dapo_math", {"prompt": [{"role": "user", "content": "P"}], "reward_model": {"ground_truth": '["5"]'}}, "P", "5"),  # Skywork
        ("dapo_math", {"prompt": "P", "answer": '["1", "$-3$"]'}, "P", "1, -3"),
        ("math", {"problem": "P", "answer": "[1, 2]"}, "P", "[1, 2]"),  # an interval, not a list
        ("math", {"problem": "P", "solution": "s", "answer": "-5", "source": "cn_contest", "question_type": "MCQ"}, "P", "-5"),  # NuminaMath-1.5
        ("gsm8k", {"prompt": [{"role": "user", "content": "P, and let's think"}], "reward_model": {"ground_truth": "5"}, "extra_info": {"question": "P", "answer": "2+3\n#### 5"}}, "P", "5"),  # verl
        ("gsm8k", {"question": "P", "answer": "She has 48/2=<<48/2=24>>24.\n#### 1,024"}, "P", "1024"),
    ],
)  # fmt: skip
def test_question_and_gold_answer(name, row, question, answer):
    problem = parse(name, row)
    assert (problem.question, problem.answer) == (question, answer)
    assert (problem.id, problem.task, problem.metadata["place"]) == ("id", name, "f row 1")


def test_rationales():
    gsm8k = parse("gsm8k", {"question": "P", "answer": "48/2 = <<48/2=24>>24 clips.\n#### 24"})
    assert gsm8k.rationale == "48/2 = 24 clips.\n\nThe final answer is \\boxed{24}"
    assert parse("math", {"problem": "P", "solution": r"Thus \boxed{1}."}).rationale == r"Thus \boxed{1}."
    assert parse("olympiad", {"question": "P", "final_answer": ["1"], "solution": ["a", "b"]}).rationale == "a\n\nb"
    assert parse("dapo_math", {"prompt": "P", "solution": "34"}).rationale is None


def test_details_are_kept():
    row = {"problem": "P", "level": "Level 5", "type": "Algebra", "solution": r"\boxed{1}", "other": 1}
    assert parse("math", row).metadata == {"place": "f row 1", "level": "Level 5", "type": "Algebra"}


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("math", {"problem": "P", "solution": "so it is 3"}, "f row 1: the solution has no"),
        ("math", {"problem": "P", "solution": r"\boxed{\frac{1}"}, "has no"),
        ("math", {"problem": "P", "answer": "???"}, r"f row 1: gold answer '\?\?\?' does not parse; correct or remove"),
        ("math", {"problem": "P", "answer": None, "solution": None}, "gold answer 'None' does not parse"),
        ("gsm8k", {"question": "P", "answer": "24"}, "without `####`"),
        ("gsm8k", {"question": "P", "answer": "#### many"}, "gold answer 'many' does not parse as a number"),
        ("aime24", {"problem": "P", "answer": "n+1"}, "does not parse"),
        ("olympiad", {"question": "P", "final_answer": []}, "does not parse"),
        ("math", {"problem": "P", "answer": "proof"}, "f row 1: gold answer 'proof' is none; correct or remove"),
        ("math", {"problem": "P", "answer": "notfound", "solution": r"\boxed{1}"}, "gold answer 'notfound' is none"),
        ("dapo_math", {"prompt": "P", "answer": '["'}, "does not parse"),
    ],
)
def test_bad_gold_answers(name, row, message):
    error = parse(name, row)
    assert isinstance(error, BadGold)
    with pytest.raises(InputError, match=message):
        raise error


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("math", {"text": "P"}, "f row 1: no column problem or question or prompt; it has text; rename the right one"),
        ("math", {"problem": "P"}, "no column answer or reward_model.ground_truth or solution"),
        ("gsm8k", {"question": "P"}, "no column answer or extra_info.answer; it has question"),
        ("dapo_math", {"prompt": "P"}, "no column reward_model.ground_truth or answer or ground_truth or solution"),
        ("math", {"problem": " ", "answer": "1"}, "the question is empty"),
        ("dapo_math", {"prompt": [], "answer": "1"}, "the question is empty"),
    ],
)
def test_missing_columns(name, row, message):
    with pytest.raises(InputError, match=message):
        parse(name, row)
