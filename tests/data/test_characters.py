"""A tokenizer that cannot write what a task asks: refused, or said, for every way in which tokenizers fail."""

import dataclasses

import pytest
import tokenizers
from tokenizers import Regex, models, pre_tokenizers

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.characters import check_characters
from iiblpo_jax.data.task import Task
from iiblpo_jax.rewards.exact import Exact
from iiblpo_jax.rewards.verifier import Problem

DIGITS = [*"0123456789+=#"]


class Plain:
    """encode(text) of a `tokenizers` model."""

    def __init__(self, model, split=None):
        self._rust = tokenizers.Tokenizer(model)
        if split is not None:
            self._rust.pre_tokenizer = split

    def encode(self, text):
        try:
            return self._rust.encode(text).ids
        except Exception as error:
            raise InputError("no") from error


def vocabulary(words, *special):
    return {word: i for i, word in enumerate([*special, *words])}


CHARACTERS = pre_tokenizers.Split(Regex("."), "isolated")
KINDS = {
    "unknown is token 0": Plain(models.WordLevel(vocabulary(DIGITS, "<pad>"), unk_token="<pad>"), CHARACTERS),
    "unknown is refused": Plain(models.WordLevel(vocabulary(DIGITS)), CHARACTERS),
    "unknown is dropped": Plain(models.BPE(vocabulary(DIGITS), [])),
    "unknown is unk": Plain(models.BPE(vocabulary(DIGITS, "<unk>"), [], unk_token="<unk>")),
    "unigram": Plain(models.Unigram([("<unk>", 0.0), *((digit, -1.0) for digit in DIGITS)], unk_id=0)),
}
BYTES = Plain(models.BPE(vocabulary([f"<0x{byte:02X}>" for byte in range(256)]), [], byte_fallback=True))


def task(questions, **changes):
    problems = [Problem(id=str(i), question=question, answer="3", task="t") for i, question in enumerate(questions)]
    how = {"verifier": Exact(marker="#"), "cue": "#", "marker": "#"} | changes
    return Task(name="t", train=problems, heldout=[], **how)


def check(asked, tokenizer):
    check_characters(asked, asked.train, tokenizer)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_tokenizer_is_seen_through(kind, capsys):
    tokenizer = KINDS[kind]
    check(task(["1+2=", "1 + 2\n=", "1\u0301+2="]), tokenizer)  # blanks and accents may be normalised away
    assert not capsys.readouterr().err
    with pytest.raises(
        InputError, match=r"task 't': .* has no token for \* - in 2 of 3 problems, so the model would be"
    ):
        check(task(["1*2=", "2-1=", "1+2="]), tokenizer)
    with pytest.raises(InputError, match="no token for > in its template, cue or marker"):
        check(task(["1+2="], template="{question}>"), tokenizer)
    with pytest.raises(InputError, match=r"no token for \[ in its template, cue or marker"):
        check(task(["1+2="], marker="["), tokenizer)


def test_a_few_problems_are_said_and_stay(capsys):
    check(task(["1+2=", "1+2=", "1×2="]), KINDS["unknown is unk"])
    line = capsys.readouterr().err
    assert line.startswith("WARNING: task 't': the model's tokenizer has no token for × in 1 of 3 problems")
    assert line.count("\n") == 1


def test_turns_before_the_question_count_too():
    asked = task(["1+2="])
    turns = (
        {"role": "user", "content": "1*1="},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "1+2="},
    )
    (problem,) = asked.train
    with pytest.raises(InputError, match=r"no token for \* in 1 of 1 problems"):
        check_characters(asked, [dataclasses.replace(problem, messages=turns)], KINDS["unknown is unk"])


def test_bytes_write_everything(capsys):
    check(task(["1×2=", "π", "😀"], template="¿{question}?"), BYTES)
    assert not capsys.readouterr().err


def test_a_vocabulary_of_words_is_asked_for_words():
    words = Plain(models.WordLevel(vocabulary(["one", "two", "#", "3"], "<unk>"), unk_token="<unk>"))
    words._rust.pre_tokenizer = pre_tokenizers.Whitespace()
    check(task(["one two", "two"], cue="#", marker="#"), words)  # no letter of them is known alone
    with pytest.raises(InputError, match="no token for e h r t in 2 of 2 problems"):
        check(task(["three", "three"]), words)
