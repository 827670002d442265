"""Supervised fine-tuning: the mean negative log-likelihood of a token of the responses.

    L = -sum_i log pi(y_i | x_i) / sum_i |y_i|

Prompts are read and not learnt. Every token weighs the same, so long responses weigh more.
"""

import jax
import jax.numpy as jnp

from iiblpo_jax.offline.losses.interface import Loss, Read


def sft() -> Loss:
    """The module's loss, linear in the log-probs."""
    return Loss(name="sft", function=likelihood, linear=True)


def likelihood(read: Read) -> jax.Array:
    """Mean over the tokens of all cases."""
    return -read.logp_PG.sum() / jnp.maximum(read.tokens_PG.sum(), 1.0)
