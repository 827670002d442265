"""What the steps of a run learn from: prompts that will be rolled out, or recorded rollouts. A step takes one `Drawn`.

Prompts    the prompt pipeline
Recorded   files that a run wrote (recorded.py): data.recorded
"""

import abc
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.common.padded import pad_rows
from iiblpo_jax.data.endless import Endless, epochs
from iiblpo_jax.data.gold import check_gold
from iiblpo_jax.data.pipeline import PromptPipeline
from iiblpo_jax.data.prompts import Prompt, PromptBatch, collate, tokenize
from iiblpo_jax.data.task import Task
from iiblpo_jax.model.tokens.tokenizer import Tokenizer
from iiblpo_jax.rollout.forest import Forest
from iiblpo_jax.run.placing import Drawn, Placing
from iiblpo_jax.run.recorded import Group


class Source(abc.ABC):
    """An endless iterator of `Drawn`, and the same in every process of a run.

    Attributes:
      dropped: prompts (Recorded: groups) that are left out because they are longer than rollout.max_prompt.
      shown_width: tokens of the widest prompt with its answer; 0 where nobody reads them.
    """

    def __init__(self, items: Endless, *, dropped: int, shown_width: int):
        self._items, self.dropped, self.shown_width = items, dropped, shown_width

    def __next__(self) -> Drawn:
        return self._drawn(next(self._items))

    def get_state(self) -> bytes:
        """The position."""
        return self._items.get_state()

    def set_state(self, state: bytes) -> None:
        """Continues exactly where `get_state` was taken.

        Raises:
          InputError: the state was taken from other data.
        """
        self._items.set_state(state)

    @abc.abstractmethod
    def _drawn(self, item: Any) -> Drawn:
        """What an item of `items` is to a step."""


class Prompts(Source):
    """The prompts of a pipeline, to be rolled out."""

    def __init__(self, pipeline: PromptPipeline, place: Placing):
        super().__init__(pipeline, dropped=pipeline.dropped, shown_width=pipeline.shown_width)
        self._place = place

    def _drawn(self, item: PromptBatch) -> Drawn:
        return self._place(item)


class Recorded(Source):
    """Recorded groups with their prompts, P a step; every epoch has all of them in a new order.

    Args:
      groups: of `recorded.read_groups`, at least one.
      tasks: whose training problems the prompts are among.
      tokenizer, place: of the run.
      prompts_per_step: P.
      max_prompt, max_answer, max_tokens: S, A, T.
      seed: of the order.
      shown: batches have the prompts with their answers too.

    Raises:
      InputError: no groups, an id that no training problem has, every prompt of a task too long, a gold answer that
        does not parse.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        tasks: Sequence[Task],
        tokenizer: Tokenizer,
        place: Placing,
        *,
        prompts_per_step: int,
        max_prompt: int,
        max_answer: int,
        max_tokens: int,
        seed: int,
        shown: bool = False,
    ):
        prompts = _prompts(groups, tasks, tokenizer, max_prompt, max_answer, shown)
        kept = [(group, prompts[group[0].prompt_id]) for group in groups if group[0].prompt_id in prompts]
        batches = epochs(kept, seed=seed).batch(prompts_per_step, batch_fn=list)
        fingerprint = _fingerprint(kept, f"{seed} {prompts_per_step} {max_prompt} {max_tokens}")
        shown_width = max(len(prompt.shown) for prompt in prompts.values())
        super().__init__(Endless(batches, fingerprint), dropped=len(groups) - len(kept), shown_width=shown_width)
        cue_width = max(len(prompt.cue) for prompt in prompts.values())
        self._widths, self._max_tokens, self._place = (max_prompt, max_answer, cue_width), max_tokens, place

    def _drawn(self, item: Sequence[tuple[Group, Prompt]]) -> Drawn:
        batch = collate([prompt for _, prompt in item], self._widths, shown=self.shown_width)
        return self._place(batch, forest_of([group for group, _ in item], batch, self._max_tokens))


def forest_of(groups: Sequence[Group], batch: PromptBatch, max_tokens: int) -> Forest:
    """Recorded groups of one size as host arrays; log-probs are the recorded ones, z has no width."""
    lines, size = [line for group in groups for line in group], len(groups[0])
    tokens_RT, length_R = pad_rows([line.tokens for line in lines], max_tokens)
    logp_RT = np.zeros(tokens_RT.shape, np.float32)
    for row, line in zip(logp_RT, lines, strict=True):
        row[: len(line.logp)] = line.logp
    within_R, begins_R = np.array([line.parent for line in lines]), np.arange(len(lines)) // size * size
    parent_R = np.where(within_R < 0, -1, within_R + begins_R).astype(np.int32)
    branch_at_R = np.array([line.branch_at for line in lines], np.int32)
    columns: dict[str, Any] = {  # on the host: the source places them
        "prompt_PS": batch.tokens_PS,
        "prompt_len_P": batch.length_P,
        "tokens_RT": tokens_RT,
        "raw_logp_RT": logp_RT,
        "entropy_RT": np.zeros_like(logp_RT),
        "length_R": length_R,
        "finish_R": np.array([line.finish for line in lines], np.int32),
        "parent_R": parent_R,
        "branch_at_R": branch_at_R,
        "z_RZ": np.zeros((len(lines), 0), np.float32),
        "left_R": np.array([line.left for line in lines], np.float32),
        # Only a plain resample starts where its parent did.
        "fallback_R": (parent_R >= 0) & (length_R > 0) & (branch_at_R == branch_at_R[parent_R]),
    }
    return Forest(**columns)


def _prompts(
    groups: Sequence[Group], tasks: Sequence[Task], tokenizer, max_prompt: int, max_answer: int, shown: bool
) -> dict:
    """The prompts of the groups by id, but those that are too long."""
    if not groups:
        raise InputError("the files of data.recorded hold no rollouts; give files that a run wrote into its rollouts/")
    problems = {problem.id: (task, problem) for task in tasks for problem in task.train}
    for group in groups:
        if group[0].prompt_id not in problems:
            raise InputError(
                f"{group[0].where}: prompt_id {group[0].prompt_id!r} is no training problem of this config's task; set "
                "task.* and data.seed as in the run that was recorded"
            )
    wanted = {group[0].prompt_id for group in groups}
    found = {}
    for task in tasks:
        check_gold(task)
        if mine := [problem for problem in task.train if problem.id in wanted]:
            prompts, _ = tokenize(task, mine, tokenizer, max_prompt, max_answer, shown=shown)
            found |= {prompt.problem.id: prompt for prompt in prompts}
    return found


def _fingerprint(items: Sequence[tuple[Group, Prompt]], settings: str) -> str:
    """Identifies the sequence of groups: what a saved position is a position in."""
    digest = hashlib.sha256(settings.encode())
    for group, prompt in items:
        digest.update(f"{prompt.problem.id} {prompt.tokens}".encode())
        for line in group:
            digest.update(f"{line.parent - group[0].trajectory} {line.branch_at} {line.finish}".encode())
            digest.update(line.tokens.tobytes() + line.logp.tobytes())
            digest.update(f"{line.left:.6f}".encode() if line.left < 1 else b"")
    return digest.hexdigest()[:16]
