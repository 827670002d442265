"""Responses that were found with a hint, in the place of some that were not right (KEPO, arXiv 2602.00400). In graph.

They are learnt from as answers to the prompt without the hint: tokens, log-probs and entropies are as if it had been
asked alone, so that the ratio of the first step is 1 and the hint is in no row.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from iiblpo_jax.bottleneck.information import Reading, join_texts, packed_reading
from iiblpo_jax.common.padded import Padded, join
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.adapters.adapted import Weights, bound
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import Decoder
from iiblpo_jax.rollout.forest import Forest


class Ask(NamedTuple):
    """A further rollout of a step, with hints in its P prompts, or one of the teacher that writes them.

    Attributes:
      prompt_PS, prompt_len_P: right-padded prompts, wider than those of the step.
      key: random key.
      writes: it is the teacher's: a hint a prompt.
    """

    prompt_PS: jax.Array
    prompt_len_P: jax.Array
    key: jax.Array
    writes: bool = False


class Replace(NamedTuple):
    """Which trajectories give way to which.

    Attributes:
      fresh: of a rollout with hints.
      begin_PH, begin_len_P: tokens that its prompts ended with and that belong to the responses.
      take_R: for every trajectory of the step, the one of `fresh` that takes its place; -1 = it stays.
    """

    fresh: Forest
    begin_PH: jax.Array
    begin_len_P: jax.Array
    take_R: jax.Array


@functools.partial(jax.jit, static_argnames=("model", "reading", "dtype", "mesh"))
def replaced(
    policy: Weights, kept: Forest, said: Replace, *, model: ModelConfig, reading: Reading, dtype: str, mesh: Mesh | None
) -> Forest:
    """The Forest with trajectories replaced; of these log-probs and entropies are those of `policy`, read anew.

    Args:
      policy: weights that sampled.
      kept: roots without branches.
      said: what replaces them; with what they begin with they fit into T tokens.
      model, reading, dtype: how the policy reads.
      mesh: devices among which prompts are split; None = one.
    """
    with meshes.using(mesh):
        forest = _put(kept, said)
        prompts = forest.prompt_len_P.shape[0]
        forest = meshes.as_rolled_out(forest, prompts)
        logp_RT, entropy_RT = response_reading(bound(model, policy, dtype), forest, reading)
        new_R1 = (said.take_R >= 0)[:, None]
        forest = forest.replace(
            raw_logp_RT=jnp.where(new_R1, logp_RT, forest.raw_logp_RT),
            entropy_RT=jnp.where(new_R1, entropy_RT, forest.entropy_RT),
        )
        return meshes.as_rolled_out(forest, prompts)


def _put(kept: Forest, said: Replace) -> Forest:
    fresh, take_R = said.fresh, jnp.maximum(said.take_R, 0)
    begin_RH, begin_len_R = (x_P[fresh.group_R[take_R]] for x_P in (said.begin_PH, said.begin_len_P))
    tokens_RT = join(begin_RH, begin_len_R, fresh.tokens_RT[take_R], fresh.length_R[take_R])
    new = {
        "tokens_RT": tokens_RT[:, : kept.tokens_RT.shape[1]],
        "length_R": begin_len_R + fresh.length_R[take_R],
        "finish_R": fresh.finish_R[take_R],
    }

    def choose(old, x):
        return jnp.where((said.take_R >= 0).reshape(-1, *[1] * (x.ndim - 1)), x, old)

    return kept.replace(**{name: choose(getattr(kept, name), x) for name, x in new.items()})


def response_reading(model: Decoder, forest: Forest, reading: Reading) -> tuple[jax.Array, jax.Array]:
    """(log-probs, entropies) [R,T] of the responses after the prompts of the Forest; 0 beyond them, no gradient."""
    t = forest.tokens_RT.shape[1]
    texts = join_texts(
        [Padded(forest.prompt_PS, forest.prompt_len_P).repeat(forest.group_size)],
        Padded(forest.tokens_RT, forest.length_R),
        p=forest.prompt_len_P.shape[0],
        width=forest.prompt_PS.shape[1] + t,
    )
    packed, read = packed_reading(model, texts, t, reading)
    return packed.collect(lambda bins: read(bins=bins))
