"""The answer that is heard token by token against a search in the decoded text."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from iiblpo_jax.rollout.branching import Branching
from iiblpo_jax.rollout.marker import marker_table
from iiblpo_jax.rollout.solved import Gold, is_right, listen, nothing_heard

#        0    1     2     3     4     5     6       7     8
VOCAB = [b"", b"#", b"1", b"8", b";", b"}", b"{18", b"#{", b"x"]
T = 7
ANSWERS = [[2], [3], [2, 3], [2, 4]]
HASH, BRACE = "#", "#{"


def searched(tokens, answer, marker):
    """The text behind the first marker begins with the answer's tokens, and no letter or digit comes next."""
    ends, text = [], b""
    for token in tokens:
        text += VOCAB[token]
        ends.append(len(text))
    at = text.find(marker.encode())
    if at < 0:
        return False
    done = next(i for i, end in enumerate(ends) if end >= at + len(marker))
    rest = tokens[done + 1 :]
    after = rest[len(answer) : len(answer) + 1]
    return rest[: len(answer)] == answer and not (after and VOCAB[after[0]][:1].isalnum())


@jax.jit
def heard(gold, prompt_B, tokens_BT, length_B):
    def step(heard, t):
        new = listen(heard, gold, prompt_B, tokens_BT[:, t])
        return jax.tree.map(lambda new, old: jnp.where(t < length_B, new, old), new, heard), None

    last, _ = jax.lax.scan(step, nothing_heard(len(tokens_BT)), jnp.arange(T))
    return is_right(last, gold, prompt_B)


def no_cue(prompts: int):
    """What a rollout does not read of a Gold."""
    return jnp.zeros((prompts, 1), int), jnp.zeros(prompts, int)


responses = st.lists(st.lists(st.integers(1, 8), min_size=1, max_size=T), min_size=4, max_size=4)


@settings(max_examples=300, deadline=None)
@given(rows=responses)
def test_equals_a_search_in_the_text(rows):
    gold = Gold(
        markers=(marker_table(VOCAB, HASH), marker_table(VOCAB, BRACE)),
        marker_P=jnp.array([0, 1, 0, 1]),
        answer_PA=jnp.array([answer + [0] * (2 - len(answer)) for answer in ANSWERS]),
        answer_len_P=jnp.array([len(answer) for answer in ANSWERS]),
        cue_PQ=no_cue(4)[0],
        cue_len_P=no_cue(4)[1],
    )
    padded = jnp.array([row + [0] * (T - len(row)) for row in rows])
    found = heard(gold, jnp.arange(4), padded, jnp.array([len(row) for row in rows]))
    expected = [searched(row, ANSWERS[p], (HASH, BRACE)[p % 2]) for p, row in enumerate(rows)]
    np.testing.assert_array_equal(found, expected)


def test_the_cases_that_matter():
    """Answer 1: `#1;` is right; `#18`, `1`, `x#8` and a second `#8#1` are not."""
    gold = Gold((marker_table(VOCAB, HASH),), jnp.array([0]), jnp.array([[2]]), jnp.array([1]), *no_cue(1))
    rows = [[1, 2, 4], [1, 2, 3], [2], [8, 1, 3], [1, 3, 1, 2], [8, 1, 2]]
    padded = jnp.array([row + [0] * (T - len(row)) for row in rows])
    found = heard(gold, jnp.zeros(6, int), padded, jnp.array([len(row) for row in rows]))
    assert found.tolist() == [True, False, False, False, False, True]


def test_nobody_listens_where_no_branch_depends_on_it():
    assert not Branching(k=2).asks_answer
    assert not Branching(k=0, solved=False).asks_answer
    assert Branching(k=2, solved=False).asks_answer
