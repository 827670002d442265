"""What a reward model learns from: rows of tokens, two and two, and the rows that say what is typical of a policy."""

from collections.abc import Sequence

import numpy as np
from flax import struct

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.common.padded import pad_rows
from iiblpo_jax.data.pairs import Pair, right_and_wrong
from iiblpo_jax.latents.features import Continuation

HELD_OUT = 8  # every so many prompts one is held out


@struct.dataclass
class PairRows:
    """N preference pairs as right-padded rows [prompt, response], the chosen one first.

    Attributes:
      tokens_N2C, length_N2: the rows.
      prompt_N: which prompt a pair is about.
    """

    tokens_N2C: np.ndarray
    length_N2: np.ndarray
    prompt_N: np.ndarray

    def __getitem__(self, index) -> "PairRows":
        return PairRows(self.tokens_N2C[index], self.length_N2[index], self.prompt_N[index])

    def __len__(self) -> int:
        return len(self.prompt_N)


def graded_pairs(samples: Sequence[Sequence[Continuation]], right_PG: np.ndarray) -> PairRows:
    """The n-th right response of every prompt against its n-th wrong one, as long as there are both.

    Args:
      samples: G responses to each of P prompts.
      right_PG: which of them are right.

    Raises:
      InputError: no prompt has right and wrong responses.
    """
    chosen, rejected, prompts = [], [], []
    for prompt, (mine, right_G) in enumerate(zip(samples, right_PG, strict=True)):
        for right, wrong in right_and_wrong([[*one.prompt, *one.response] for one in mine], right_G):
            chosen.append(right)
            rejected.append(wrong)
            prompts.append(prompt)
    if not prompts:
        raise InputError(
            f"reward model: none of {len(samples)} prompts has right and wrong responses among its "
            f"{right_PG.shape[1]}; raise reward_model.samples or reward_model.prompts, or give reward_model.pairs"
        )
    return _rows(chosen, rejected, prompts)


def file_pairs(pairs: Sequence[Pair], tokenizer, *, longest: int) -> tuple[PairRows, int]:
    """Pairs of a file as rows, and how many are longer than `longest` tokens and left out.

    No template is put around a prompt, control tokens in texts are text, and a stop token ends every response.

    Raises:
      InputError: all of them are too long.
    """
    kept, chosen, rejected, prompts = {}, [], [], []
    for pair in pairs:
        prompt = tokenizer.encode(tokenizer.quote(pair.prompt), add_special=True)
        both = [
            [*prompt, *tokenizer.encode(tokenizer.quote(text)), tokenizer.stop_ids[0]]
            for text in (pair.chosen, pair.rejected)
        ]
        if max(map(len, both)) > longest:
            continue
        chosen.append(both[0])
        rejected.append(both[1])
        prompts.append(kept.setdefault(pair.prompt, len(kept)))
    if not prompts:
        raise InputError(
            f"reward_model.pairs: all {len(pairs)} pairs are longer than rollout.max_prompt + rollout.max_tokens = "
            f"{longest} tokens; raise one of them"
        )
    return _rows(chosen, rejected, prompts), len(pairs) - len(prompts)


def split(prompt_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(train, held out): which pairs; no prompt is on both sides. A single prompt is on both."""
    prompts = np.unique(prompt_N)
    held_N = np.isin(prompt_N, prompts[:: min(HELD_OUT, max(2, len(prompts)))])
    return (np.flatnonzero(~held_N) if len(prompts) > 1 else np.arange(len(prompt_N))), np.flatnonzero(held_N)


def _rows(chosen, rejected, prompts) -> PairRows:
    tokens_MC, length_M = pad_rows([*chosen, *rejected])
    n = len(prompts)
    return PairRows(
        tokens_N2C=np.stack([tokens_MC[:n], tokens_MC[n:]], axis=1),
        length_N2=np.stack([length_M[:n], length_M[n:]], axis=1),
        prompt_N=np.asarray(prompts, np.int32),
    )
