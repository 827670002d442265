"""Whether a root has given the gold answer, read token by token while it is decoded.

A hint about where to spend branches, never a reward: an answer in other words counts as wrong here, and so does one
that shares a token with its marker.
"""

import jax
import jax.numpy as jnp
from flax import struct

from iiblpo_jax.rollout.marker import MarkerTable


class Gold(struct.PyTreeNode):
    """Gold answers of a batch of prompts, and how a task asks for them.

    Attributes:
      markers: answer markers of the tasks; marker_P says which one a prompt's task has.
      answer_PA, answer_len_P: tokens of the answers, right padded; at least one each.
      cue_PQ, cue_len_P: the text that asks for the answer, such as "The answer is ".
      shown_PS, shown_len_P: prompts with their answers for hints, right padded; None where nobody reads them.
    """

    markers: tuple[MarkerTable, ...]
    marker_P: jax.Array
    answer_PA: jax.Array
    answer_len_P: jax.Array
    cue_PQ: jax.Array
    cue_len_P: jax.Array
    shown_PS: jax.Array | None = None
    shown_len_P: jax.Array | None = None


@struct.dataclass
class Heard:
    """Attributes, one entry a slot:

    state_B: of the marker's automaton.
    matched_B: tokens of the answer that have come and were right, one more after the token behind it; -1 before the
      marker, -2 after a wrong one.
    """

    state_B: jax.Array
    matched_B: jax.Array


def nothing_heard(slots: int) -> Heard:
    """Before the first token."""
    zero_B = jnp.zeros(slots, jnp.int32)
    return Heard(state_B=zero_B, matched_B=zero_B - 1)


def listen(heard: Heard, gold: Gold, prompt_B: jax.Array, token_B: jax.Array) -> Heard:
    """After one more token of each slot."""
    matched_B, length_B = heard.matched_B, gold.answer_len_P[prompt_B]
    wanted_B = gold.answer_PA[prompt_B, jnp.clip(matched_B, 0, gold.answer_PA.shape[1] - 1)]
    answers_B = (matched_B >= 0) & (matched_B <= length_B)
    # Right behind an answer a letter or digit makes it another one.
    fits_B = jnp.where(matched_B < length_B, token_B == wanted_B, ~gold.markers[0].word_V[token_B])
    matched_B = jnp.where(answers_B, jnp.where(fits_B, matched_B + 1, -2), matched_B)
    which_B, state_B = gold.marker_P[prompt_B], heard.state_B
    for i, marker in enumerate(gold.markers):
        mine_B = (which_B == i) & (heard.matched_B == -1)
        state = jnp.minimum(heard.state_B, marker.next_WV.shape[0] - 1)  # a state of another marker is not used
        ends_B = mine_B & (marker.end_WV[state, token_B] > 0)
        matched_B = jnp.where(ends_B, 0, matched_B)
        state_B = jnp.where(mine_B, marker.next_WV[state, token_B], state_B)
    return Heard(state_B=state_B, matched_B=matched_B)


def is_right(heard: Heard, gold: Gold, prompt_B: jax.Array) -> jax.Array:
    """The gold answer, and nothing that makes it another one, followed the first marker, bool [B]."""
    return heard.matched_B >= gold.answer_len_P[prompt_B]
