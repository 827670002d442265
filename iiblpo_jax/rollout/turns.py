"""What turns add to slots and to the record: whose turn it is, and what the environment has said.

A turn of the policy ends with the token that completes the text `turn_end` (marker.py, so in whatever tokens). The slot
then waits; the host answers all that wait at once (conversation.py), and the observation's tokens are fed one by one in
place of drawn ones. They are in the sequence and are attended to; they are nobody's draw.

    turn_RT    0 0 0 -1 -1 1 1 -2 2 2     turn 0, the first observation, turn 1, the second observation, turn 2
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import struct

from iiblpo_jax.rollout.marker import MarkerTable
from iiblpo_jax.rollout.sampling import Draw


@dataclasses.dataclass(frozen=True, kw_only=True)
class TurnSpec:
    """Limits: turns of a response that are answered, and tokens of an observation, cut behind them."""

    most: int
    observation: int


class Turns(struct.PyTreeNode):
    """Attributes, one entry a slot:

    state_B: of the automaton of `turn_end`, in front of the token to be drawn.
    turn_B: how often this response has been answered: the number of the turn that is under way.
    waits_B: the turn has ended and nobody has answered it yet.
    ended_B: the environment has ended the response.
    given_BO, given_len_B, given_at_B: the last observation, its tokens, and the response index at which it begins.
    """

    state_B: jax.Array
    turn_B: jax.Array
    waits_B: jax.Array
    ended_B: jax.Array
    given_BO: jax.Array
    given_len_B: jax.Array
    given_at_B: jax.Array

    def given(self, index_B: jax.Array) -> jax.Array:
        """Whether the token at index_B is an observation's, bool [B]."""
        return (index_B >= self.given_at_B) & (index_B < self.given_at_B + self.given_len_B)

    def mark(self, index_B: jax.Array) -> jax.Array:
        """What is written into turn_RT at index_B."""
        return jnp.where(self.given(index_B), -self.turn_B, self.turn_B)

    def dictate(self, draw: Draw, logits_BV: jax.Array, index_B: jax.Array, temperature: float) -> Draw:
        """The draw with the observation's tokens in place of drawn ones. Their log-prob is what the policy would have
        given them; it counts nowhere."""
        column_B1 = jnp.clip(index_B - self.given_at_B, 0, self.given_BO.shape[1] - 1)[:, None]
        token_B1 = jnp.take_along_axis(self.given_BO, column_B1, axis=1)
        logp_BV = jax.nn.log_softmax(logits_BV / (temperature or 1.0))
        logp_B, given_B = jnp.take_along_axis(logp_BV, token_B1, axis=1)[:, 0], self.given(index_B)
        return draw.replace(
            token_B=jnp.where(given_B, token_B1[:, 0], draw.token_B),
            raw_logp_B=jnp.where(given_B, logp_B, draw.raw_logp_B),
        )

    def heard(self, marker: MarkerTable, token_B, index_B, emits_B, goes_on_B, most: int) -> "Turns":
        """After one more token of the slots that emit; those that go on wait where it ended a turn."""
        own_B = emits_B & ~self.given(index_B)
        ends_B = own_B & (marker.end_WV[self.state_B, token_B] > 0)
        state_B = jnp.where(own_B, marker.next_WV[self.state_B, token_B], self.state_B)
        return self.replace(state_B=state_B, waits_B=self.waits_B | (ends_B & goes_on_B & (self.turn_B < most)))

    def told(self, told: "Told", index_B: jax.Array) -> "Turns":
        """After the answers to all that wait."""

        def new(x_B, old_B):
            return jnp.where(self.waits_B.reshape(-1, *[1] * (old_B.ndim - 1)), x_B, old_B)

        return Turns(
            state_B=new(0, self.state_B),
            turn_B=new(self.turn_B + 1, self.turn_B),
            waits_B=jnp.zeros_like(self.waits_B),
            ended_B=new(told.done_B, self.ended_B),
            given_BO=new(told.tokens_BO, self.given_BO),
            given_len_B=new(told.length_B, self.given_len_B),
            given_at_B=new(index_B, self.given_at_B),
        )


@struct.dataclass
class Told:
    """Answers of the environments: tokens_BO, length_B; done_B: the response is over. Read where a slot waits."""

    tokens_BO: jax.Array
    length_B: jax.Array
    done_B: jax.Array


@struct.dataclass
class Pause:
    """What the host is asked, a slot an entry.

    Attributes:
      waits_B: it wants an answer.
      trajectory_B, turn_B: of which turn of which trajectory.
      tokens_BT: of the trajectory; mine_BT: which of them are the turn's.
    """

    waits_B: jax.Array
    trajectory_B: jax.Array
    turn_B: jax.Array
    tokens_BT: jax.Array
    mine_BT: jax.Array


class TurnRecord(struct.PyTreeNode):
    """turn_RT of the Forest, and the automaton's state in front of every token: where a branch takes them up."""

    turn_RT: jax.Array
    state_RT: jax.Array

    def at(self, index_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(turn, state) [B] at one index of every row."""
        turn_B1, state_B1 = (jnp.take_along_axis(x, index_B[:, None], axis=1) for x in (self.turn_RT, self.state_RT))
        return turn_B1[:, 0], state_B1[:, 0]

    def write(self, row_B: jax.Array, index_B: jax.Array, turns: Turns) -> "TurnRecord":
        """One more token; rows that do not exist are dropped."""
        return TurnRecord(
            turn_RT=self.turn_RT.at[row_B, index_B].set(turns.mark(index_B), mode="drop"),
            state_RT=self.state_RT.at[row_B, index_B].set(turns.state_B, mode="drop"),
        )

    def inherit(self, row_B: jax.Array, parents: "TurnRecord", inherited_BT: jax.Array) -> "TurnRecord":
        """Begins branches with what their parents have; rows that do not exist are dropped."""

        def put(mine_RT, theirs_BT):
            return mine_RT.at[row_B].set(jnp.where(inherited_BT, theirs_BT, 0), mode="drop")

        return jax.tree.map(put, self, parents)


def no_turns(slots: int, observation: int) -> Turns:
    """Before the first token."""
    zero_B, no_B = jnp.zeros(slots, jnp.int32), jnp.zeros(slots, bool)
    return Turns(
        state_B=zero_B,
        turn_B=zero_B,
        waits_B=no_B,
        ended_B=no_B,
        given_BO=jnp.zeros((slots, observation), jnp.int32),
        given_len_B=zero_B,
        given_at_B=zero_B,
    )


def nothing_told(slots: int, observation: int) -> Told:
    """For when nobody waits."""
    empty = no_turns(slots, observation)
    return Told(tokens_BO=empty.given_BO, length_B=empty.given_len_B, done_B=empty.ended_B)
