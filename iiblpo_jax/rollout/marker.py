"""Where the reasoning ends: the token in which the answer marker first begins, found without leaving the device.

A marker such as `\\boxed{` may start in the middle of a token and run over several. So the host composes the
marker's Knuth-Morris-Pratt automaton with the bytes of every vocabulary entry once, and the device steps through
tokens: one table look-up a token, whatever the tokenizer.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.model.tokens.tokenizer import Tokenizer
from iiblpo_jax.rollout.forest import STOP


class MarkerTable(NamedTuple):
    """The marker's automaton over token ids. W = bytes of the marker = number of states; state i: i bytes matched.

    next_WV: state after a token that does not complete the marker.
    end_WV: how many bytes of the token the marker's completion uses (at least 1); 0 if it does not complete there.
    bytes_V: length of each token in bytes.
    word_V: it begins with an ASCII letter or digit. The same for every marker of a vocabulary.
    """

    next_WV: jax.Array
    end_WV: jax.Array
    bytes_V: jax.Array
    word_V: jax.Array


def _byte_automaton(marker: bytes) -> np.ndarray:
    """[W, 256] Knuth-Morris-Pratt transitions; the value W means that the marker is complete."""
    steps = np.zeros((len(marker), 256), np.int32)
    fallback = 0  # the state after marker[1:i], where a mismatch in state i resumes
    for i, byte in enumerate(marker):
        if i:
            steps[i] = steps[fallback]
            fallback = steps[fallback, byte]
        steps[i, byte] = i + 1
    return steps


def token_pieces(tokenizer: Tokenizer, vocab_size: int) -> list[bytes]:
    """`token_bytes` of `marker_table` for a model whose vocabulary has at least the tokenizer's size."""
    pieces = tokenizer.token_bytes()
    return pieces + [b""] * (vocab_size - len(pieces))


def marker_table(token_bytes: list[bytes], marker: str) -> MarkerTable:
    """Composes the marker's automaton with every token. Host side, once per task.

    Args:
        token_bytes: the bytes each token id adds to the text; `b""` for ids that add none (special tokens, padding
            of the vocabulary). It must cover every id that the model can emit.
        marker: the text that opens the final answer.

    Raises:
        InputError: the marker is empty.
    """
    pattern = marker.encode()
    if not pattern:
        raise InputError("the answer marker is empty; give the task a marker such as '#' or '\\boxed{'")
    steps, width = _byte_automaton(pattern), len(pattern)
    bytes_V = np.array([len(b) for b in token_bytes], np.int32)
    offset_V = np.cumsum(bytes_V) - bytes_V
    flat = np.frombuffer(b"".join(token_bytes), np.uint8)
    state_WV = np.repeat(np.arange(width, dtype=np.int32)[:, None], len(token_bytes), axis=1)
    end_WV = np.zeros_like(state_WV)
    for i in range(int(bytes_V.max(initial=0))):
        ids = np.flatnonzero(bytes_V > i)
        live = state_WV[:, ids]
        after = np.where(live < width, steps[np.minimum(live, width - 1), flat[offset_V[ids] + i]], width)
        end_WV[:, ids] = np.where((after == width) & (live < width), i + 1, end_WV[:, ids])
        state_WV[:, ids] = after
    word_V = np.array([b[:1].isalnum() for b in token_bytes])
    return MarkerTable(*map(jnp.asarray, (state_WV % width, end_WV, bytes_V, word_V)))


def marker_cut(table: MarkerTable, tokens_RT: jax.Array, length_R: jax.Array, finish_R: jax.Array) -> jax.Array:
    """cut_R: index of the token in which the first occurrence of the marker begins.

    Without a marker it is the number of tokens before the stop token. The stop token (finish_R == STOP) is never text.
    """
    limit_R = length_R - (finish_R == STOP)
    width = table.next_WV.shape[0]
    inside_RT = jnp.arange(tokens_RT.shape[1]) < limit_R[:, None]
    size_RT = jnp.where(inside_RT, table.bytes_V[tokens_RT], 0)
    first_RT = jnp.cumsum(size_RT, axis=1) - size_RT  # byte at which each token begins

    def step(carry, column):
        state_R, begin_R = carry
        token_R, first_R, inside_R = column
        end_R = table.end_WV[state_R, token_R]
        hit_R = inside_R & (end_R > 0) & (begin_R < 0)
        begin_R = jnp.where(hit_R, first_R + end_R - width, begin_R)
        return (table.next_WV[state_R, token_R], begin_R), None

    start = (jnp.zeros_like(length_R), jnp.full_like(length_R, -1))
    columns = (tokens_RT.T, first_RT.T, inside_RT.T)
    (_, begin_R), _ = jax.lax.scan(step, start, columns)
    # Tokens beginning at or before the marker, less one: an empty token shares its first byte with its successor.
    holder_R = jnp.sum(inside_RT & (first_RT <= begin_R[:, None]), axis=1) - 1
    return jnp.where(begin_R < 0, limit_R, holder_R)
