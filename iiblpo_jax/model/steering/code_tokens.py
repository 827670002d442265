"""Codes that whole responses are drawn under: N tokens that no text has, one in place of each prompt's last token.

    q_1 ... q_n                plain: z off
    q_1 ... q_(n-1) <code z>   under code z

The embedding has a row for each, which starts as a copy of that of the last prompt token, moved a little, so that the
model starts as it was. It is a part of the policy like any other row: trained, saved, split over a mesh and published
with it. Their ids are textless (Tokenizer.textless_ids), hence never drawn.

Latent tokens of a prompt that the policy itself learns to hear: UpSkill (arXiv 2602.22296) names a strategy in the
prompt's text; a token in place of the last one is ours.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import Decoder, bind, params_of

KEY = 5870  # of the first embeddings, the same for every run: they are a part of the model that it starts from
EVEN = 64  # vocabularies stay multiples of what they were multiples of, up to this, so that they split over a mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodeTokens:
    """The last `count` ids of a vocabulary: code z is token first + z."""

    first: int
    count: int


def code_tokens(model: ModelConfig, count: int) -> CodeTokens | None:
    """The code tokens of a model of `coded_config`; None without codes."""
    return CodeTokens(first=model.vocab_size - count, count=count) if count else None


def coded_config(model: ModelConfig, count: int) -> ModelConfig:
    """The architecture with room for `count` codes behind its vocabulary; without codes the very same."""
    even = math.gcd(model.vocab_size, EVEN)
    return dataclasses.replace(model, vocab_size=model.vocab_size + -(-count // even) * even)


def with_codes(model: Decoder, count: int, *, end: int | None, noise: float) -> Decoder:
    """The model with `count` codes; without codes the very same.

    Args:
      model: of plain text.
      count: N.
      end: last token of every prompt; None = rows of zeros, to be restored into.
      noise: norm of what a code adds to the embedding of `end`, as a share of that embedding's.
    """
    if not count:
        return model
    config, params = coded_config(model.config, count), params_of(model)
    added = config.vocab_size - model.config.vocab_size
    embed_VD = params["embed"]
    rows_XD = jnp.zeros((added, embed_VD.shape[1]), embed_VD.dtype)
    if end is not None:
        direction_ND = jax.random.normal(jax.random.key(KEY), (count, embed_VD.shape[1]))
        direction_ND /= jnp.linalg.norm(direction_ND, axis=1, keepdims=True)
        started_ND = embed_VD[end] + noise * jnp.linalg.norm(embed_VD[end]) * direction_ND
        rows_XD = rows_XD.at[-count:].set(started_ND.astype(embed_VD.dtype))
    params["embed"] = jnp.concatenate([embed_VD, rows_XD])
    if "head" in params:  # whose rows no distribution reads
        params["head"] = jnp.pad(params["head"], [(0, added), (0, 0)])
    return bind(config, params)


def without_codes(params: dict, model: ModelConfig) -> dict:
    """Weights of a coded model without what it has behind the vocabulary of `model`, the plain architecture."""
    tables = {name: params[name][: model.vocab_size] for name in ("embed", "head") if name in params}
    return params | tables


def put_codes(rows_NC: jax.Array, prompt_len_N: jax.Array, token_N: jax.Array) -> jax.Array:
    """Rows [prompt, ...] with token_N in place of the last token of each prompt."""
    return rows_NC.at[jnp.arange(rows_NC.shape[0]), jnp.maximum(prompt_len_N - 1, 0)].set(token_N)
