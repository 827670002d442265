"""High-entropy minority tokens, "80/20" (Wang et al., arXiv 2506.01939): only forking tokens learn.

DAPO, its loss over the ceil(.2 N) tokens of the highest entropy among the N of a minibatch; the mean is over the tokens
that are left. Entropy is that of the current policy and carries no gradient.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from iiblpo_jax.objectives.covariance import largest
from iiblpo_jax.objectives.dapo import dapo
from iiblpo_jax.objectives.interface import Batch, Objective


def forking_tokens(*, max_tokens: int, clip_low=0.2, clip_high=0.28, aggregate="token-mean", fraction=0.2) -> Objective:
    base = dapo(max_tokens=max_tokens, clip_low=clip_low, clip_high=clip_high, aggregate=aggregate)
    mask = partial(highest_entropy, fraction=fraction)
    return dataclasses.replace(base, name="forking_tokens", token_mask=mask, whole_minibatch=True)


def highest_entropy(batch: Batch, *, fraction: float) -> jax.Array:
    """1.0 on the tokens that count and are among the ceil(fraction * N), at least one, of the highest entropy."""
    mask_RT = batch.rows.mask_RT
    count = jnp.maximum(1, jnp.ceil(fraction * mask_RT.sum()).astype(jnp.int32))
    return largest(jax.lax.stop_gradient(batch.entropy_RT), mask_RT > 0, count).astype(jnp.float32)
