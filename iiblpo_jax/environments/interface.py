"""An environment: what a policy says in a turn is answered by an observation, until it has said its last word."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

from iiblpo_jax.rewards.verifier import Problem

SEEN = "seen"  # name of the column: number of the first turn whose observation says the gold answer, NEVER: none
NEVER = -1
State = Any  # data that pickles, never changed in place: a branch takes up that of its parent


class Reply(NamedTuple):
    """What a turn is answered with.

    Attributes:
      state: of the conversation from here on.
      observation: text that the policy is given; empty = nothing.
      reward: added to that of the response, the sum held to [0, 1].
      done: the conversation ends here, and the observation is not given.
    """

    state: State
    observation: str
    reward: float = 0.0
    done: bool = False


class Environment(abc.ABC):
    """Answers turns. What it says depends on the problem and the turns so far alone, so a run can be repeated.

    Attributes:
      turn_end: text with which the policy ends a turn that it wants answered.
      bounded: it answers any text at once and cannot hang or crash, so it needs no process of its own.
    """

    turn_end: str
    bounded: bool = False

    @abc.abstractmethod
    def reset(self, problem: Problem) -> State:
        """The state in which the first turn on a problem begins."""

    @abc.abstractmethod
    def step(self, state: State, text: str) -> Reply:
        """Answers a turn.

        Args:
          state: in which it began; not to be changed.
          text: of the turn, `turn_end` included and whatever the token that completed it holds besides.
        """
