"""Texts become tokens within bounds, and cases rows."""

import numpy as np
import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.registry import make_task
from iiblpo_jax.model.files.loading import load_model
from iiblpo_jax.offline.examples import Encoder, Example, fingerprint, rows_of


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_model(tiny_model)[1]


def test_a_text_is_its_characters_and_the_end(tokenizer):
    encode = Encoder(tokenizer=tokenizer, max_prompt=4, max_tokens=3)
    example = encode.text("here", "1+2=", "3#")
    assert tokenizer.decode(example.prompt) == "1+2=" and tokenizer.decode(example.response) == "3#"
    assert example.response[-1] == tokenizer.eos_id and len(example.response) == 3


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("1+2+3", "6"), r"row 7: the prompt has 5 tokens and rollout\.max_prompt = 4; raise rollout\.max_prompt"),
        (("1", "123"), r"row 7: the response has 4 tokens and rollout\.max_tokens = 3; raise rollout\.max_tokens"),
    ],
)
def test_what_is_too_long_is_named(tokenizer, texts, message):
    with pytest.raises(InputError, match=message):
        Encoder(tokenizer=tokenizer, max_prompt=4, max_tokens=3).text("row 7", *texts)


def test_a_chat_template_is_wanted_where_there_is_none(tokenizer):
    with pytest.raises(InputError, match="no chat template"):
        Encoder(tokenizer=tokenizer, max_prompt=4, max_tokens=3, chat=True).text("here", "1", "2")


def test_solutions_are_asked_as_the_task_asks(tokenizer):
    task = make_task("arithmetic", options={"train_size": 3})
    encode = Encoder(tokenizer=tokenizer, max_prompt=20, max_tokens=60)
    first = encode.solutions(task, task.train)[0]
    assert tokenizer.decode(first.prompt) == task.train[0].question
    assert tokenizer.decode(first.response) == task.train[0].rationale
    assert encode.solutions(task, [type(task.train[0])(id="a", question="1", answer="1", task="x")]) == []


def test_rows_by_hand():
    cases = [(Example((1, 2), (3, 4)), Example((1, 2), (5,))), (Example((6,), ()), Example((6,), (7, 8, 9)))]
    rows = rows_of(cases, max_prompt=2, max_tokens=3)
    expected = [[1, 2, 3, 4, 0], [1, 2, 5, 0, 0], [6, 0, 0, 0, 0], [6, 7, 8, 9, 0]]
    np.testing.assert_array_equal(rows.tokens_RC, expected)
    np.testing.assert_array_equal(rows.prompt_len_R, [2, 2, 1, 1])
    np.testing.assert_array_equal(rows.mask_RT, [[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]])
    np.testing.assert_array_equal(rows.group_R, [0, 0, 1, 1])


def test_a_fingerprint_tells_cases_and_settings_apart():
    case, other = (Example((1,), (2,)),), (Example((1,), (3,)),)
    assert fingerprint([case], "a") == fingerprint([case], "a")
    assert len({fingerprint([case], "a"), fingerprint([other], "a"), fingerprint([case], "b")}) == 3
