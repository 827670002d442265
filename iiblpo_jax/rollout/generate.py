"""Text in, text out: the rollout engine as a plain generator."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.common.padded import pad_rows
from iiblpo_jax.model.decoder import Decoder, params_of
from iiblpo_jax.model.tokens.tokenizer import Tokenizer
from iiblpo_jax.rollout.engine import rollout
from iiblpo_jax.rollout.forest import response_tokens
from iiblpo_jax.rollout.publication import PublicationSpec, publish
from iiblpo_jax.rollout.sampling import Sampling
from iiblpo_jax.rollout.spec import RolloutSpec

SLOTS = 64  # prompts decoded at a time; further ones wait for a free slot
DEFAULT_TOKENS = 256


def generate(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    *,
    max_tokens: int | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    code: int | None = None,
) -> list[str]:
    """One continuation a prompt, without the prompt and without special tokens.

    Args:
      model, tokenizer: of `load_model`.
      prompts: texts, or token ids such as those of `tokenizer.render_chat`.
      max_tokens: longest continuation; None = DEFAULT_TOKENS, or what the model's positions leave of them.
      sampling: how tokens are drawn; None = greedy.
      seed: of the draws.
      code: token in place of the last one of every prompt, such as a code's (steering/code_tokens.py); None = z off.

    Raises:
      InputError: no prompt, an empty prompt, ids that the model does not have, or a prompt that leaves no room for the
        continuation.
    """
    if isinstance(prompts, str):
        raise InputError("generate takes a list of prompts; pass [prompt]")
    ids = [tokenizer.encode(p, add_special=True) if isinstance(p, str) else list(p) for p in prompts]
    if code is not None:
        ids = [[*prompt[:-1], code] for prompt in ids if prompt]
    if not ids or not all(ids):
        raise InputError("generate needs prompts of at least one token each; pass non-empty texts")
    if not all(0 <= i < model.config.vocab_size for prompt in ids for i in prompt):
        raise InputError(
            f"a prompt has a token id outside the model's vocabulary of {model.config.vocab_size}; encode it with the "
            "tokenizer of load_model"
        )
    longest = max(map(len, ids))
    if max_tokens is None:
        max_tokens = max(1, min(DEFAULT_TOKENS, model.config.max_positions - longest))
    if longest + max_tokens > model.config.max_positions:
        raise InputError(
            f"a prompt of {longest} tokens and max_tokens={max_tokens} exceed the model's {model.config.max_positions} "
            "positions; shorten one of them"
        )
    prompt_PS, length_P = pad_rows(ids)
    spec = RolloutSpec(
        model=model.config,
        roots=1,
        slots=min(SLOTS, len(ids)),
        max_tokens=max_tokens,
        sampling=sampling or Sampling(temperature=0.0),
        stop_ids=tokenizer.stop_ids,
        never_ids=tokenizer.textless_ids(model.config.vocab_size),
    )
    published = publish(params_of(model), spec=PublicationSpec(model=model.config))
    forest, _ = rollout(published, jnp.array(prompt_PS), jnp.array(length_P), jax.random.key(seed), spec=spec)
    return tokenizer.decode_batch(response_tokens(forest))
