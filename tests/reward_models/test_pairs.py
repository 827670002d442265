"""Pairs as rows: graded responses two and two, a file's texts as tokens, and which prompts are held out."""

import numpy as np
import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.pairs import Pair
from iiblpo_jax.latents.features import Continuation
from iiblpo_jax.reward_models.pairs import file_pairs, graded_pairs, split


def samples(*prompts):
    """Responses of one token each: prompt p is the token 10 + p."""
    return [[Continuation(p, [10 + p], [token], True) for token in said] for p, said in enumerate(prompts)]


def test_the_nth_right_response_meets_the_nth_wrong_one():
    right_PG = np.array([[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 1, 0]], bool)
    pairs = graded_pairs(samples([1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4]), right_PG)
    assert pairs.tokens_N2C.tolist() == [[[10, 2], [10, 1]], [[10, 3], [10, 4]], [[12, 3], [12, 1]]]
    assert pairs.length_N2.tolist() == [[2, 2]] * 3 and pairs.prompt_N.tolist() == [0, 0, 2]
    assert len(pairs[np.array([2])]) == 1


def test_without_right_and_wrong_ones_of_a_prompt_there_is_nothing_to_learn_from():
    with pytest.raises(InputError, match=r"none of 1 prompts has right and wrong responses among its 2; raise"):
        graded_pairs(samples([1, 2]), np.ones((1, 2), bool))


class Bytes:
    """One token a character; `<` is a control token, which `quote` makes `(`. 0 ends a text."""

    stop_ids = (0, 9)

    def quote(self, text):
        return text.replace("<", "(")

    def encode(self, text, *, add_special=False):
        return [1] * add_special + [ord(c) for c in text]


def test_texts_of_a_file_become_rows():
    """Control tokens in them are text; a stop token ends what was said."""
    pairs, dropped = file_pairs(
        [Pair("<a", "b<", "c"), Pair("<b", "bbbbbbb", "c"), Pair("<b", "d", "c"), Pair("<a", "d", "c")],
        Bytes(),
        longest=6,
    )
    assert dropped == 1 and pairs.prompt_N.tolist() == [0, 1, 0]
    assert pairs.tokens_N2C[0].tolist() == [[1, *map(ord, "(ab("), 0], [1, *map(ord, "(ac"), 0, 0]]
    assert pairs.length_N2[0].tolist() == [6, 5]
    with pytest.raises(InputError, match=r"all 1 pairs are longer than .* = 3 tokens"):
        file_pairs([Pair("a", "b", "c")], Bytes(), longest=3)


def test_no_prompt_is_on_both_sides():
    prompt_N = np.repeat(np.arange(24), 3)
    train, held_out = split(prompt_N)
    assert sorted([*train, *held_out]) == list(range(72)) and set(prompt_N[held_out]) == {0, 8, 16}
    train, held_out = split(np.array([4, 7, 7]))
    assert train.tolist() == [1, 2] and held_out.tolist() == [0]
    train, held_out = split(np.zeros(3))
    assert train.tolist() == held_out.tolist() == [0, 1, 2]
