"""From a batch on the host to the arrays of a step on the devices."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from iiblpo_jax.data.prompts import PromptBatch
from iiblpo_jax.data.task import Task
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.environments.asked import turn_end_of
from iiblpo_jax.model.tokens.tokenizer import Tokenizer
from iiblpo_jax.rollout.forest import Forest
from iiblpo_jax.rollout.marker import MarkerTable, marker_table, token_pieces
from iiblpo_jax.rollout.solved import Gold
from iiblpo_jax.step.programs import Asked


class Drawn(NamedTuple):
    """What one step learns from: P prompts, and their arrays on the devices; among these a recorded Forest."""

    batch: PromptBatch
    asked: Asked


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placing:
    """Where a batch goes: the mesh, and the marker of every task by its name; and where turns are answered the text
    that ends one."""

    mesh: Mesh
    markers: Mapping[str, MarkerTable]
    turn_end: MarkerTable | None = None

    def __call__(self, batch: PromptBatch, forest: Forest | None = None) -> Drawn:
        """The batch with its arrays on the devices; those of `forest` are host arrays."""
        names = list(self.markers)
        task_P = np.array([names.index(problem.task) for problem in batch.problems], np.int32)
        prompt, answer = (batch.tokens_PS, batch.length_P), (batch.answer_PA, batch.answer_length_P)
        arrays = (*prompt, task_P, *answer, batch.cue_PQ, batch.cue_length_P, batch.shown_PS, batch.shown_length_P)
        (prompt_PS, prompt_len_P, *gold), forest = meshes.to_devices((arrays, forest), self.mesh, "batch")
        gold = Gold(tuple(self.markers.values()), *gold)
        return Drawn(batch, Asked(prompt_PS, prompt_len_P, gold, forest, self.turn_end))


def placing(tasks: Sequence[Task], tokenizer: Tokenizer, vocab: int, mesh: Mesh, *, turns: bool = False) -> Placing:
    """The placing of batches whose problems are of these tasks; `vocab` is the model's, at least the tokenizer's.

    Raises:
      InputError: `turns` are to be answered and a task has no environment, or they end turns differently.
    """
    pieces = token_pieces(tokenizer, vocab)
    turn_end = marker_table(pieces, turn_end_of(tasks)) if turns else None
    return Placing(
        mesh=mesh, markers={task.name: marker_table(pieces, task.marker) for task in tasks}, turn_end=turn_end
    )
