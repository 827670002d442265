"""Prompts as arrays: rendered and tokenised once, collated into batches of one shape."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.common.padded import pad_rows
from iiblpo_jax.data.characters import check_characters
from iiblpo_jax.data.task import Task, answer_ids, render
from iiblpo_jax.rewards.verifier import Problem

SHOWN = ("shown_PS", "shown_length_P")  # of a PromptBatch
ENDS_READ = 32  # prompts of a task, of either set, whose last token is compared


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptBatch:
    """P prompts, right padded with 0.

    Attributes:
      tokens_PS: int32 prompt tokens.
      length_P: int32 prompt lengths, 1..S.
      answer_PA: int32 tokens of the gold answer as it follows the cue, cut at A.
      answer_length_P: int32, 1..A.
      cue_PQ, cue_length_P: int32 tokens of the task's answer cue.
      shown_PS, shown_length_P: int32 tokens of the prompts with their answers for hints; None where nobody reads them.
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
    shown_PS: np.ndarray | None = None
    shown_length_P: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """A problem that is asked: tokens of its prompt, of its gold answer (cut at A), and of its task's answer cue.

    `shown` are those of the prompt with the answer for a hint, where somebody reads it.
    """

    problem: Problem
    tokens: list[int]
    answer: list[int]
    cue: list[int]
    shown: list[int] = dataclasses.field(default_factory=list)


def tokenize(
    task: Task, problems: Sequence[Problem], tokenizer, max_prompt: int, max_answer: int, *, shown: bool = False
) -> tuple[list[Prompt], int]:
    """The prompts that fit, and how many do not.

    Args:
      task: how the problems are asked.
      problems: at least one.
      tokenizer: an `iiblpo_jax.model.tokens.tokenizer.Tokenizer`.
      max_prompt: S; longer prompts are left out.
      max_answer: A; longer gold answers are cut.
      shown: prompts with their answers for hints are wanted too.

    Raises:
      InputError: every prompt is too long, or the tokenizer cannot write what the task asks.
    """
    check_characters(task, problems, tokenizer, hinted=shown)
    cue = tokenizer.encode(task.cue)
    encoded = [(problem, render(task, problem, tokenizer)) for problem in problems]
    kept = [
        Prompt(
            problem=problem,
            tokens=tokens,
            answer=answer_ids(task, problem, tokenizer)[:max_answer],
            cue=cue,
            shown=render(task, problem, tokenizer, hint=task.answer_hint(problem)) if shown else [],
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


def distinct_prompts(batches: Iterable[PromptBatch], count: int) -> list[tuple[Problem, list[int]]]:
    """The distinct problems among the first `count` of batches, in their order, with the tokens of their prompts."""
    asked = (one for b in batches for one in zip(b.problems, b.tokens_PS, b.length_P, strict=True))
    found: dict[tuple[str, str], tuple[Problem, list[int]]] = {}
    for problem, tokens_S, length in itertools.islice(asked, count):
        found.setdefault((problem.task, problem.id), (problem, tokens_S[:length].tolist()))
    return list(found.values())


def prompt_end(tasks: Sequence[Task], tokenizer) -> int:
    """The token that all prompts end with, as far as the first ones tell: a code stands in place of it.

    Raises:
      InputError: they end with different tokens, which codes in their place would not tell apart.
    """
    ends = {
        render(task, problem, tokenizer)[-1]
        for task in tasks
        for problem in [*task.train[:ENDS_READ], *task.heldout[:ENDS_READ]]
    }
    if len(ends) != 1:
        names = ", ".join(task.name for task in tasks)
        raise InputError(
            f"codes.n puts a code in place of the last token of a prompt, and those of {names} end with {len(ends)} "
            "different ones; use tasks whose template ends alike, or codes.n=0"
        )
    return ends.pop()


def collate(prompts: Sequence[Prompt], widths: tuple[int, int, int], *, shown: int = 0) -> PromptBatch:
    """A batch of P prompts; `widths` are S, A and Q, tokens of the widest prompt, gold answer and cue; `shown` those of
    the widest prompt with its answer, 0 = there are none."""
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
        **(dict(zip(SHOWN, pad_rows([prompt.shown for prompt in prompts], shown), strict=True)) if shown else {}),
    )
