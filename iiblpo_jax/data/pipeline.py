"""Prompts for the trainer: tokenised once, mixed by weight, shuffled, resumable; and those that are held out."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

import grain
import numpy as np
from absl import logging

from iiblpo_jax.common.errors import InputError, warn
from iiblpo_jax.data.endless import Endless, epochs
from iiblpo_jax.data.gold import check_gold
from iiblpo_jax.data.prompts import Prompt, PromptBatch, collate, tokenize
from iiblpo_jax.data.task import Task


class PromptPipeline(Endless[PromptBatch]):
    """An endless iterator of `PromptBatch`.

    Every epoch of every task is shuffled anew. The sequence of prompts is a function of (tasks, weights, seed), and
    the n-th rollout, refills included, takes items n*P .. (n+1)*P of it. In a run of several processes every one has
    all of them.

    Args:
      tasks: (task, weight) pairs; weights are relative.
      tokenizer: an `iiblpo_jax.model.tokens.tokenizer.Tokenizer`.
      prompts_per_step: P.
      max_prompt: S; longer prompts are dropped and counted in `dropped`.
      max_answer: A; longer gold answers are cut.
      seed: of the order.
      shown: batches have the prompts with their answers too; `shown_width` is that of the widest, 0 without.

    Raises:
      InputError: nothing to train on, every prompt too long, a gold answer that does not parse, or a weight that is not
        positive.
    """

    def __init__(
        self,
        tasks: Sequence[tuple[Task, float]],
        tokenizer,
        *,
        prompts_per_step: int,
        max_prompt: int,
        max_answer: int,
        seed: int,
        shown: bool = False,
    ):
        _check_mix(tasks)
        self.dropped = 0
        sources = []
        for task, _ in tasks:
            check_gold(task)
            prompts, dropped = tokenize(task, task.train, tokenizer, max_prompt, max_answer, shown=shown)
            self.dropped += dropped
            sources.append(prompts)
        if (count := sum(map(len, sources))) < prompts_per_step:
            warn(
                f"{count} training problems and train.prompts_per_step = {prompts_per_step}: a step asks some of them "
                f"more than once; lower it to {count} or less, or add rows"
            )
        orders = [epochs(prompts, seed=seed, index=index) for index, prompts in enumerate(sources)]
        mixed = grain.MapDataset.mix(orders, weights=[weight for _, weight in tasks])
        cue_width = max(len(prompts[0].cue) for prompts in sources)
        self.shown_width = width = max(len(prompt.shown) for prompts in sources for prompt in prompts)
        widths = max_prompt, max_answer, cue_width
        batches = mixed.batch(prompts_per_step, batch_fn=lambda prompts: collate(prompts, widths, shown=width))
        super().__init__(batches, _fingerprint(tasks, sources, prompts_per_step, seed))


def heldout_prompts(
    task: Task, tokenizer, *, max_prompt: int, max_answer: int, limit: int | None = None
) -> list[Prompt]:
    """The held-out problems of a task in their fixed order.

    Args:
      task: its `heldout` is read.
      tokenizer: as for `PromptPipeline`.
      max_prompt, max_answer: S and A; longer prompts are left out with a warning.
      limit: only the first so many problems.

    Raises:
      InputError: nothing to evaluate on, or every prompt too long.
    """
    if not task.heldout:
        raise InputError(
            f"task {task.name!r} has no held-out problems, and the first and the last step are evaluated; add a file "
            "with test in its name, or rows (a tenth is held out, of fewer than 10 none), or name others in eval.tasks"
        )
    prompts, dropped = tokenize(task, task.heldout[:limit], tokenizer, max_prompt, max_answer)
    if dropped:
        logging.warning("%s: %d held-out prompts longer than %d tokens are left out", task.name, dropped, max_prompt)
    return prompts


def batches_of(
    prompts: Sequence[Prompt], *, batch_size: int, max_prompt: int, max_answer: int
) -> Iterator[PromptBatch]:
    """Prompts in batches of one shape; the last one is filled with repeats, `valid_P` False."""
    for start in range(0, len(prompts), batch_size):
        rows = [*prompts[start : start + batch_size]]
        valid = np.arange(batch_size) < len(rows)
        rows += rows[:1] * (batch_size - len(rows))
        batch = collate(rows, (max_prompt, max_answer, len(rows[0].cue)))
        yield dataclasses.replace(batch, valid_P=valid)


def heldout_batches(
    task: Task, tokenizer, *, batch_size: int, max_prompt: int, max_answer: int, limit: int | None = None
) -> list[PromptBatch]:
    """`batches_of` the `heldout_prompts`."""
    widths = {"max_prompt": max_prompt, "max_answer": max_answer}
    return list(batches_of(heldout_prompts(task, tokenizer, limit=limit, **widths), batch_size=batch_size, **widths))


def _check_mix(tasks: Sequence[tuple[Task, float]]) -> None:
    for task, weight in tasks:
        if not weight > 0:
            raise InputError(f"task {task.name!r} has weight {weight}; weights must be positive")
        if not task.train:
            raise InputError(
                f"task {task.name!r} has no training problems, so it can only be evaluated on; train on another task, "
                "or add rows in a file without test in its name"
            )


def _fingerprint(tasks, sources: Sequence[Sequence[Prompt]], prompts_per_step: int, seed: int) -> str:
    """Identifies the global sequence of prompts: what a saved position is a position in."""
    digest = hashlib.sha256(f"{seed} {prompts_per_step}".encode())
    for (task, weight), prompts in zip(tasks, sources, strict=True):
        digest.update(f"{task.name} {float(weight)} {len(prompts)}".encode())
        for prompt in prompts:
            digest.update(f"{prompt.problem.id} {prompt.tokens}".encode())
    return digest.hexdigest()[:16]
