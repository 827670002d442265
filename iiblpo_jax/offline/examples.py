"""Prompts and responses as tokens, and cases of them as the rows of an update.

A case is what one term of a loss is about, one example a role: a demonstration alone; or a chosen and a rejected
response to one prompt, perhaps with a demonstration that is to be kept. Its rows follow each other, so that a packed
forward computes once what they begin with.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.common.padded import pad_rows
from iiblpo_jax.data.task import Task, render
from iiblpo_jax.model.tokens.tokenizer import Tokenizer
from iiblpo_jax.objectives.rows import Rows


class Example(NamedTuple):
    """Token ids of a prompt and of a response with the token that ends it; a response without tokens counts nowhere."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]


Case = tuple[Example, ...]  # by role, the same number in every case


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder:
    """Texts to Examples.

    Attributes:
      tokenizer: of the model.
      max_prompt, max_tokens: S and T; what is longer is refused.
      chat: prompts are the user's turn in the chat template, which is told `template_args`; else text as it is.
    """

    tokenizer: Tokenizer
    max_prompt: int
    max_tokens: int
    chat: bool = False
    template_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def text(self, place: str, prompt: str, response: str) -> Example:
        """Of two texts out of data: control tokens in them are text.

        Raises:
          InputError: one of them is too long, or the chat template refuses the prompt.
        """
        quoted = self.tokenizer.quote(prompt)
        if self.chat:
            ids = self.tokenizer.render_chat([{"role": "user", "content": quoted}], self.template_args)
        else:
            ids = self.tokenizer.encode(quoted, add_special=True)
        return self._example(place, ids, response)

    def solutions(self, task: Task, problems: Sequence) -> list[Example]:
        """The gold solutions of those problems that have one, asked as the task asks.

        Raises:
          InputError: a prompt or a solution is too long.
        """
        known = [problem for problem in problems if problem.rationale]
        return [self._example(p.id, render(task, p, self.tokenizer), p.rationale) for p in known]

    def _example(self, place: str, prompt_ids: Sequence[int], response: str) -> Example:
        end = self.tokenizer.stop_ids[0]
        ids = [*self.tokenizer.encode(self.tokenizer.quote(response)), end]
        for what, key, found, limit in (
            ("prompt", "max_prompt", prompt_ids, self.max_prompt),
            ("response", "max_tokens", ids, self.max_tokens),
        ):
            if not 0 < len(found) <= limit:
                mend = f"raise rollout.{key}, or remove that row" if found else "remove that row"
                raise InputError(f"{place}: the {what} has {len(found)} tokens and rollout.{key} = {limit}; {mend}")
        return Example(tuple(prompt_ids), tuple(ids))


def fingerprint(cases: Sequence[Case], settings: str) -> str:
    """Identifies the sequence of cases: what a saved position is a position in."""
    digest = hashlib.sha256(settings.encode())
    for case in cases:
        digest.update(str(case).encode())
    return digest.hexdigest()[:16]


def rows_of(cases: Sequence[Case], *, max_prompt: int, max_tokens: int) -> Rows:
    """The examples of P cases as the P * G rows of an update, on the host.

    Args:
      cases: P cases of G examples.
      max_prompt, max_tokens: S and T, the columns of the rows.
    """
    examples = [example for case in cases for example in case]
    r, t, group = len(examples), max_tokens, len(cases[0])
    tokens_RC, _ = pad_rows([example.prompt + example.response for example in examples], max_prompt + max_tokens)
    length_R = np.array([len(example.response) for example in examples], np.int32)
    mask_RT = (np.arange(t) < length_R[:, None]).astype(np.float32)
    row_R, zero_R, zero_RT = np.arange(r, dtype=np.int32), np.zeros(r, np.float32), np.zeros((r, t), np.float32)
    columns: dict[str, Any] = {  # on the host: the stage places them
        "tokens_RC": tokens_RC,
        "prompt_len_R": np.array([len(example.prompt) for example in examples], np.int32),
        "length_R": length_R,
        "mask_RT": mask_RT,
        "own_mask_RT": mask_RT,
        "raw_logp_RT": zero_RT,
        "reward_R": zero_R,
        "correct_R": zero_R,
        "group_R": row_R // group,
        "trajectory_R": row_R,
        "parent_R": np.full(r, -1, np.int32),
        "branch_at_R": np.zeros(r, np.int32),
        "keep_R": length_R > 0,
        "ib_score_R": zero_R,
        "advantage_R": zero_R,
    }
    return Rows(**columns)
