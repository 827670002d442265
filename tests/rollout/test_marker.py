"""The in-graph cut against a text search in plain Python."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.rollout.marker import marker_cut, marker_table

T = 12
STOP = b""


def searched_cut(token_bytes, tokens, length, finish, marker):
    """Token that holds the first byte of the first match of `marker`, by searching the decoded text."""
    text_tokens = list(tokens[: length - finish])
    text = b"".join(token_bytes[i] for i in text_tokens)
    at = text.find(marker.encode())
    if at < 0:
        return len(text_tokens)
    owner = [i for i, token in enumerate(text_tokens) for _ in token_bytes[token]]
    return owner[at]


def cut(token_bytes, rows, lengths, finishes, marker):
    table = marker_table(token_bytes, marker)
    return np.asarray(jax.jit(marker_cut)(table, np.array(rows), np.array(lengths), np.array(finishes)))


def padded(*rows):
    return [list(row) + [0] * (T - len(row)) for row in rows]


def test_marker_over_several_tokens_and_mid_token():
    #        0   1     2     3      4     5         6
    vocab = [b"", b"x", b"y\\", b"bo", b"xed{", b"a\\boxed{7}", b"\\boxed"]
    rows = padded([1, 2, 3, 4, 1], [1, 5, 5], [6, 3, 1, 6, 0, 4, 1], [1, 1, 0], [2, 2, 3, 4])
    #              begins in 1     whole in 1   never: 6+4 = "\boxedxed{"  none     second "y\" begins it
    assert cut(vocab, rows, [5, 3, 7, 3, 4], [0, 0, 0, 1, 0], "\\boxed{").tolist() == [1, 1, 7, 2, 1]


def test_marker_that_overlaps_itself():
    vocab = [b"", b"a", b"ab", b"aab"]
    #  a|a|a|ab: from byte 2      ab|a|ab: from byte 2      ab|ab: never
    assert cut(vocab, padded([1, 1, 1, 2], [2, 1, 2], [2, 2]), [4, 3, 2], [0, 0, 0], "aab").tolist() == [2, 1, 2]


def test_text_behind_the_length_and_the_stop_token_do_not_count():
    vocab = [b"", b"#", b"x"]
    rows = padded([2, 2, 1], [2, 2, 1], [2, 2, 1])
    assert cut(vocab, rows, [2, 3, 3], [0, 1, 0], "#").tolist() == [2, 2, 2]


def test_multibyte_marker_split_inside_a_character():
    arrow = "→".encode()
    vocab = [b"", b"q", b"z" + arrow[:1], arrow[1:], arrow[:1]]
    assert cut(vocab, padded([1, 2, 3], [1, 4, 4, 3]), [3, 4], [0, 0], "→").tolist() == [1, 2]


@settings(max_examples=150, deadline=None)
@given(
    vocab=st.lists(st.text("ab#", max_size=4), min_size=6, max_size=6),
    rows=st.lists(st.lists(st.integers(0, 5), min_size=T, max_size=T), min_size=4, max_size=4),
    lengths=st.lists(st.integers(1, T), min_size=4, max_size=4),
    finishes=st.lists(st.integers(0, 1), min_size=4, max_size=4),
    marker=st.sampled_from(["#a#", "aba", "aab"]),
)
def test_equals_text_search(vocab, rows, lengths, finishes, marker):
    token_bytes = [text.encode() for text in vocab]
    expected = [searched_cut(token_bytes, row, n, f, marker) for row, n, f in zip(rows, lengths, finishes, strict=True)]
    assert cut(token_bytes, rows, lengths, finishes, marker).tolist() == expected


def test_empty_marker_is_refused():
    with pytest.raises(InputError, match="marker"):
        marker_table([b"a"], "")
