"""The task `jsonl`: rows of any layout."""

import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.registry import make_task
from iiblpo_jax.data.task import render
from iiblpo_jax.rewards.exact import Exact
from iiblpo_jax.rewards.math import Math

SYSTEM, ASKED, SAID = ({"role": role, "content": role[0]} for role in ("system", "user", "assistant"))


def jsonl(path, **options):
    return make_task("jsonl", data_dir=path, options=options)


def rendered(task, tokenizer):
    return tokenizer.decode(render(task, task.train[0], tokenizer))


def test_usual_columns_are_found_and_mathematics_is_asked_as_in_the_paper(write_jsonl, characters):
    task = jsonl(write_jsonl("train.jsonl", [{"Problem": "1+1?", "answer": r"$\frac{4}{2}$", "level": 3}]))
    [problem] = task.train
    assert (problem.question, problem.answer, problem.task) == ("1+1?", r"\frac{4}{2}", "jsonl")
    assert problem.metadata["level"] == 3 and problem.metadata["place"].endswith("train.jsonl row 1")
    assert task.verifier == Math() and task.marker == "\\boxed{" and task.closing == "}"
    text = rendered(task, characters(chat=True))
    assert text.startswith("<system>You are a helpful assistant.<user>1+1?\nPlease reason") and text.endswith(
        "<assistant>"
    )


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_columns_by_dotted_path(write_jsonl, write_parquet, kind):
    rows = [{"Extra": {"q": {"text": "Q"}, "golds": [7.0, 8]}, "a.b": "dots"}]
    path = (write_jsonl if kind == "jsonl" else write_parquet)(f"train.{kind}", rows)
    [problem] = jsonl(path, question="extra.q.text", answer="Extra.golds").train
    assert (problem.question, problem.answer) == ("Q", "7, 8")
    assert jsonl(path, question="a.b", answer="extra.golds.0").train[0].answer == "7"
    with pytest.raises(InputError, match=r"row 1: no value in column extra\.golds\.2; it has a\.b, extra;"):
        jsonl(path, question="a.b", answer="extra.golds.2")


def test_a_conversation_is_gone_on_with(write_jsonl, characters):
    parts = [{"type": "text", "text": "{question} or "}, "7?"]
    rows = [{"chat": [SYSTEM, ASKED, SAID, {"role": "user", "content": parts}, SAID], "answer": 7}]
    task = jsonl(write_jsonl("train.jsonl", rows), messages="chat", template="<{question}>", system="mine")
    [problem] = task.train
    assert rendered(task, characters(chat=True)) == "<system>s<user>u<assistant>a<user><{question} or 7?><assistant>"
    assert rendered(task, characters(chat=False)) == "s\n\nu\n\na\n\n<{question} or 7?>\n\n"
    assert (problem.question, problem.answer) == ("user: u\n\nassistant: a\n\nuser: {question} or 7?", "7")
    assert problem.rationale == "a"


def test_a_single_turn_of_messages_is_a_question(write_jsonl, characters):
    task = jsonl(write_jsonl("train.jsonl", [{"prompt": [ASKED], "gold": "1"}]), template="{question}", system="mine")
    assert (task.train[0].question, task.train[0].messages) == ("u", ())
    assert rendered(task, characters(chat=True)) == "<system>mine<user>u<assistant>"


def test_options_of_asking(write_jsonl, characters):
    path = write_jsonl("train.jsonl", [{"question": "1+1", "answer": "2"}])
    task = jsonl(path, verifier="exact", marker="=>", template="{question}=", system="", chat=False)
    assert (task.verifier, task.cue, task.closing, task.system) == (Exact(marker="=>"), "\n=>", "", None)
    assert rendered(task, characters(chat=True)) == "1+1="
    assert jsonl(path, verifier="exact").verifier == Exact(marker="####")
    assert jsonl(path, marker="=>", cue="so =>", closing=".").cue == "so =>"


def test_a_verifier_of_ones_own_needs_no_answer_and_sees_the_row(write_jsonl, tmp_path):
    (tmp_path / "judge.py").write_text("def judge(problems, responses): return [p.metadata['tests'] for p in problems]")
    path = write_jsonl("train.jsonl", [{"question": "Q", "tests": 0.25}])
    task = jsonl(path, verifier=f"{tmp_path / 'judge.py'}:judge")
    assert task.train[0].answer == "" and task.train[0].metadata["tests"] == 0.25
    assert task.verifier.function(task.train, ["r"]) == [0.25]
    assert task.template == "{question}" and task.system is None
    with pytest.raises(InputError, match="no value in column gold; it has question, tests"):
        jsonl(path, verifier=f"{tmp_path / 'judge.py'}:judge", answer="gold")


def test_several_of_one_mix_have_names(write_jsonl):
    path = write_jsonl("train.jsonl", [{"question": f"{i}?", "answer": i} for i in range(20)])
    task = make_task("jsonl:mine", data_dir=path)
    assert task.name == "jsonl:mine" == task.train[0].task
    assert (len(task.train), len(task.heldout)) == (18, 2)
    assert len({problem.id for problem in (*task.train, *task.heldout)}) == 20


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        (
            {"question": "Q", "answer": r"\frac{1}{"},
            {},
            r"row 1: gold answer '.*frac\{1\}\{' does not parse",
        ),
        ({"question": "Q", "answer": ""}, {"verifier": "exact"}, "row 1: gold answer '' does not parse"),
        (
            {"question": "Q", "response": "1"},
            {},
            "row 1: no value in column answer or gold or .*; it has question, resp",
        ),
        ({"qestion": "Q"}, {"question": "question"}, r"column question; did you mean qestion\?; it has"),
        ({"question": " ", "answer": "1"}, {}, "row 1: the question has 0 characters"),
        ({"m": [SAID], "answer": "1"}, {"messages": "m"}, "row 1: no user's turn to answer among the messages"),
        (
            {"m": [{"from": "human"}], "answer": "1"},
            {"messages": "m"},
            "human.* is no message; write an object",
        ),
        (
            {"m": [{"role": "user", "content": [{"type": "image"}]}], "answer": "1"},
            {"messages": "m"},
            r"row 1: a message's content is no text \(\[{'type': 'image'}\]\)",
        ),
        (
            {"question": "Q", "answer": "1"},
            {"verifier": "maths"},
            r"no verifier 'maths' \(did you mean math\?\); use math",
        ),
        ({"question": "Q", "answer": "1"}, {"verifier": "math:sqrt:x"}, "No module named"),
        ({"question": "Q", "answer": "1"}, {"template": "Say"}, "the template 'Say' has no {question} in it; add it"),
        (
            {"question": "Q", "answer": "1"},
            {"templat": "Say"},
            "'jsonl' has no option templat .did you mean template",
        ),
    ],
)
def test_what_cannot_be_asked_or_graded_is_refused(write_jsonl, row, options, message):
    with pytest.raises(InputError, match=message):
        jsonl(write_jsonl("train.jsonl", [row]), **options)


def test_bad_golds_can_be_left_out(write_jsonl):
    path = write_jsonl("train.jsonl", [{"question": "Q", "answer": "1"}, {"question": "R", "answer": r"\frac{"}])
    assert [problem.question for problem in jsonl(path, skip_bad_gold=True).train] == ["Q"]
