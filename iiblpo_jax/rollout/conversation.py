"""The host's side of turns: what waiting slots have said becomes text, is answered, and goes back as tokens.

What it keeps is data: a state for every turn of every trajectory, in which that turn began. A branch takes up that of
its parent in the turn in which it begins (t* lies in it), and hears its own answers from there on.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from iiblpo_jax.common.padded import pad_rows
from iiblpo_jax.devices.mesh import to_host
from iiblpo_jax.environments.asked import Conversed, Environments, Turn
from iiblpo_jax.environments.interface import NEVER, Reply, State
from iiblpo_jax.model.tokens.tokenizer import Tokenizer
from iiblpo_jax.rewards.verifier import Problem
from iiblpo_jax.rollout.forest import Forest
from iiblpo_jax.rollout.marker import MarkerTable, marker_table, token_pieces
from iiblpo_jax.rollout.spec import RolloutSpec
from iiblpo_jax.rollout.turns import Pause, Told


class Conversation:
    """The answers of one rollout: called with a Pause it returns what the slots are told, None where nobody waits.

    Args:
      environments: of the run.
      tokenizer: of the policy.
      problems: of the P prompts.
      spec: of the rollout, with turns.
    """

    def __init__(
        self, environments: Environments, tokenizer: Tokenizer, problems: Sequence[Problem], spec: RolloutSpec
    ):
        self._environments, self._tokenizer, self._spec = environments, tokenizer, spec
        self._problems = [problem for problem in problems for _ in range(spec.group_size)]
        shape, size = spec.branching.shape, spec.branching.tree_size
        self._parents = [-1 if r % size == 0 else r - r % size + shape.parent_J[r % size] for r in range(self._count)]
        begun = environments.begin(problems)
        self._states: dict[tuple[int, int], State] = {
            (r, 0): begun[r // spec.group_size] for r in range(self._count) if self._parents[r] < 0
        }
        self._replies: dict[tuple[int, int], Reply] = {}

    @property
    def _count(self) -> int:
        return len(self._problems)

    def __call__(self, pause: Pause) -> Told | None:
        """Answers all turns that have ended, at once."""
        waits_B, trajectory_B, turn_B, tokens_BT, mine_BT = to_host(
            (pause.waits_B, pause.trajectory_B, pause.turn_B, pause.tokens_BT, pause.mine_BT)
        )
        slots = np.flatnonzero(waits_B).tolist()
        if not slots:
            return None
        texts = self._tokenizer.decode_batch([tokens_BT[b][mine_BT[b]].tolist() for b in slots])
        asked = [(int(trajectory_B[b]), int(turn_B[b])) for b in slots]
        turns = [
            Turn(self._problems[r], _along(self._states, self._parents, r, turn), text)
            for (r, turn), text in zip(asked, texts, strict=True)
        ]
        told = [[] for _ in waits_B]
        done_B = np.zeros(len(waits_B), bool)
        for b, (r, turn), reply in zip(slots, asked, self._environments.answer(turns), strict=True):
            self._replies[r, turn], self._states[r, turn + 1] = reply, reply.state
            done_B[b], told[b] = reply.done, [] if reply.done else self._ids(reply.observation)
        assert self._spec.turns is not None
        tokens_BO, length_B = pad_rows(told, self._spec.turns.observation)
        return Told(*map(jnp.asarray, (tokens_BO, length_B, done_B)))

    def _ids(self, observation: str) -> list[int]:
        """Its tokens, as text: control tokens in it are spelled."""
        assert self._spec.turns is not None
        return self._tokenizer.encode(self._tokenizer.quote(observation))[: self._spec.turns.observation]

    def heard(self, forest: Forest) -> Heard:
        """What came of the turns of every trajectory, those inherited from its parent included."""
        assert forest.turn_RT is not None
        turn_RT, at_R, length_R = to_host((forest.turn_RT, forest.branch_at_R, forest.length_R))
        inherited_R = np.where(length_R > 0, turn_RT[np.arange(self._count), at_R], 0)
        paths = [self._path(r, int(inherited_R[r])) for r in range(self._count)]
        return Heard(
            reward_R=np.array([sum(reply.reward for reply in path) for path in paths], np.float32),
            seen_R=np.array(
                [_first(p.answer, path) for p, path in zip(self._problems, paths, strict=True)], np.float32
            ),
            turns_R=np.array([len(path) for path in paths], np.float32),
        )

    def _path(self, r: int, inherited: int) -> list[Reply]:
        """The replies along a trajectory, the first `inherited` of which its parent got."""
        above = [_along(self._replies, self._parents, self._parents[r], k) for k in range(inherited)]
        mine, k = [], inherited
        while (r, k) in self._replies:
            mine.append(self._replies[r, k])
            k += 1
        return above + mine


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heard:
    """What the host knows of the turns of R trajectories.

    Attributes:
      reward_R: sum of the environment's rewards.
      seen_R: number of the first turn whose observation has the gold answer in it, NEVER where none has.
      turns_R: turns that were answered.
    """

    reward_R: np.ndarray
    seen_R: np.ndarray
    turns_R: np.ndarray


def make_environments(config, tasks: Sequence[Conversed]) -> Environments | None:
    """Those of a run that answers turns; None where a response is one."""
    if config.turns.most == 0:
        return None
    return Environments(tasks, processes=config.reward.processes, timeout_s=config.turns.timeout)


def turn_end_table(environments: Environments, tokenizer: Tokenizer, vocab_size: int) -> MarkerTable:
    """The automaton of the text that ends a turn."""
    return marker_table(token_pieces(tokenizer, vocab_size), environments.turn_end)


def _along(table: dict[tuple[int, int], Any], parents: Sequence[int], r: int, turn: int) -> Any:
    """The entry of a trajectory, or of the nearest one that it grows on."""
    while (r, turn) not in table:
        r = parents[r]
        assert r >= 0, "a turn is answered before anything goes on from it"
    return table[r, turn]


def _first(answer: str, path: Sequence[Reply]) -> int:
    """The first reply that says the answer, as words of their own; NEVER where none does."""
    wanted = re.compile(rf"(?<!\w){re.escape(answer.strip())}(?!\w)", re.IGNORECASE)
    found = (k for k, reply in enumerate(path) if answer.strip() and wanted.search(reply.observation))
    return next(found, NEVER)
