"""Prompts for the trainer: tokenised once, mixed by weight, shuffled, resumable. Built on Grain."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import grain
import numpy as np
from absl import logging

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.common.padded import pad_rows
from iiblpo_jax.data.gold import check_gold
from iiblpo_jax.data.task import Task, render
from iiblpo_jax.rewards.verifier import Problem


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptBatch:
    """P prompts, right padded with 0.

    Attributes:
      tokens_PS: int32 prompt tokens.
      length_P: int32 prompt lengths, 1..S.
      answer_PA: int32 tokens of the gold answer as it follows the cue, cut at A.
      answer_length_P: int32, 1..A.
      cue_PQ, cue_length_P: int32 tokens of the task's answer cue.
      valid_P: bool; False for the repeats that fill the last evaluation batch. All True in training.
      problems: the P problems.
    """

    tokens_PS: np.ndarray
    length_P: np.ndarray
    answer_PA: np.ndarray
    answer_length_P: np.ndarray
    cue_PQ: np.ndarray
    cue_length_P: np.ndarray
    valid_P: np.ndarray
    problems: tuple[Problem, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Prompt:
    problem: Problem
    tokens: list[int]
    answer: list[int]
    cue: list[int]


class PromptPipeline:
    """An endless iterator of `PromptBatch`.

    Every epoch of every task is shuffled anew. The sequence of prompts is a function of (tasks, weights, seed), and
    step n takes items n*P .. (n+1)*P of it. In a run of several processes every one has all of them.

    Args:
      tasks: (task, weight) pairs; weights are relative.
      tokenizer: an `iiblpo_jax.model.tokens.tokenizer.Tokenizer`.
      prompts_per_step: P.
      max_prompt: S; longer prompts are dropped and counted in `dropped`.
      max_answer: A; longer gold answers are cut.
      seed: of the order.

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
    ):
        _check_mix(tasks)
        self.dropped = 0
        sources = []
        for task, _ in tasks:
            check_gold(task)
            prompts, dropped = _tokenize(task, task.train, tokenizer, max_prompt, max_answer)
            self.dropped += dropped
            sources.append(prompts)
        self._fingerprint = _fingerprint(tasks, sources, prompts_per_step, seed)
        orders = [
            grain.MapDataset.source(prompts).shuffle(seed=_seed(seed, index)).repeat()
            for index, prompts in enumerate(sources)
        ]
        mixed = grain.MapDataset.mix(orders, weights=[weight for _, weight in tasks])
        cue_width = max(len(prompts[0].cue) for prompts in sources)
        batches = mixed.batch(
            prompts_per_step, batch_fn=lambda prompts: _collate(prompts, (max_prompt, max_answer, cue_width))
        )
        # Everything is in memory already: a thread pool would only reorder work.
        self._iterator = iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))

    def __iter__(self) -> PromptPipeline:
        return self

    def __next__(self) -> PromptBatch:
        return next(self._iterator)

    def get_state(self) -> bytes:
        """The position, as JSON."""
        return json.dumps({"grain": self._iterator.get_state(), "data": self._fingerprint}).encode()

    def set_state(self, state: bytes) -> None:
        """Continues exactly where `get_state` was taken.

        Raises:
          InputError: the state was taken from other data.
        """
        content = json.loads(state)
        if content["data"] != self._fingerprint:
            raise InputError(
                "the checkpoint was written with other training data; resume with the same task, data.seed, "
                "train.prompts_per_step, rollout.max_prompt and tokenizer, or start in a new workdir"
            )
        self._iterator.set_state(content["grain"])


def heldout_batches(
    task: Task,
    tokenizer,
    *,
    batch_size: int,
    max_prompt: int,
    max_answer: int,
    limit: int | None = None,
) -> list[PromptBatch]:
    """The held-out problems of a task in their fixed order, in batches of one shape.

    Args:
      task: its `heldout` is read.
      tokenizer: as for `PromptPipeline`.
      batch_size: P; the last batch is filled with repeats, `valid_P` False.
      max_prompt, max_answer: S and A; longer prompts are left out with a warning.
      limit: only the first so many problems.

    Raises:
      InputError: nothing to evaluate on, or every prompt too long.
    """
    if not task.heldout:
        raise InputError(f"task {task.name!r} has no held-out problems; add a test file or set eval.every=0")
    prompts, dropped = _tokenize(task, task.heldout[:limit], tokenizer, max_prompt, max_answer)
    if dropped:
        logging.warning("%s: %d held-out prompts longer than %d tokens are left out", task.name, dropped, max_prompt)
    batches = []
    for start in range(0, len(prompts), batch_size):
        rows = prompts[start : start + batch_size]
        valid = np.arange(batch_size) < len(rows)
        rows += rows[:1] * (batch_size - len(rows))
        batch = _collate(rows, (max_prompt, max_answer, len(rows[0].cue)))
        batches.append(dataclasses.replace(batch, valid_P=valid))
    return batches


def _check_mix(tasks: Sequence[tuple[Task, float]]) -> None:
    for task, weight in tasks:
        if not weight > 0:
            raise InputError(f"task {task.name!r} has weight {weight}; weights must be positive")
        if not task.train:
            raise InputError(f"task {task.name!r} has no training problems; it can only be evaluated on")


def _tokenize(
    task: Task, problems: Sequence[Problem], tokenizer, max_prompt: int, max_answer: int
) -> tuple[list[_Prompt], int]:
    """The prompts that fit, and how many do not."""
    cue = tokenizer.encode(task.cue)
    encoded = [(problem, render(task, problem, tokenizer)) for problem in problems]
    kept = [
        _Prompt(
            problem=problem, tokens=tokens, answer=tokenizer.encode(task.answer_text(problem))[:max_answer], cue=cue
        )
        for problem, tokens in encoded
        if len(tokens) <= max_prompt
    ]
    if not kept:
        longest = max(len(tokens) for _, tokens in encoded)
        raise InputError(
            f"task {task.name!r}: every prompt is longer than rollout.max_prompt={max_prompt} tokens; "
            f"the longest has {longest}: raise rollout.max_prompt"
        )
    return kept, len(encoded) - len(kept)


def _collate(prompts: Sequence[_Prompt], widths: tuple[int, int, int]) -> PromptBatch:
    tokens, answers, cues = (
        pad_rows([getattr(prompt, name) for prompt in prompts], width)
        for name, width in zip(("tokens", "answer", "cue"), widths, strict=True)
    )
    return PromptBatch(
        tokens_PS=tokens[0],
        length_P=tokens[1],
        answer_PA=answers[0],
        answer_length_P=answers[1],
        cue_PQ=cues[0],
        cue_length_P=cues[1],
        valid_P=np.ones(len(prompts), bool),
        problems=tuple(prompt.problem for prompt in prompts),
    )


def _seed(seed: int, index: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:4]) >> 1


def _fingerprint(tasks, sources: Sequence[Sequence[_Prompt]], prompts_per_step: int, seed: int) -> str:
    """Identifies the global sequence of prompts: what a saved position is a position in."""
    digest = hashlib.sha256(f"{seed} {prompts_per_step}".encode())
    for (task, weight), prompts in zip(tasks, sources, strict=True):
        digest.update(f"{task.name} {float(weight)} {len(prompts)}".encode())
        for prompt in prompts:
            digest.update(f"{prompt.problem.id} {prompt.tokens}".encode())
    return digest.hexdigest()[:16]
