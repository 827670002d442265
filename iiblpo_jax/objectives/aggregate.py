"""From per-token losses to one number: weights w_RT with loss = sum_rt w_rt * l_rt.

The weights depend on the token mask m alone and are computed on a whole minibatch (all devices, all microbatches), so
the loss cannot depend on how rows are split or padded. Names and definitions as in verl's `agg_loss`; `rows` counts the
rows with at least one counted token.
"""

import jax.numpy as jnp

from iiblpo_jax.common import masked


def token_mean(mask_RT, *, max_tokens):
    """m / sum(m): every token weighs the same."""
    return mask_RT / jnp.maximum(mask_RT.sum(), 1.0)


def seq_mean_token_mean(mask_RT, *, max_tokens):
    """m / (tokens of the row * rows): every response weighs the same."""
    return mask_RT / (jnp.maximum(mask_RT.sum(1, keepdims=True), 1.0) * _rows(mask_RT))


def seq_mean_token_sum(mask_RT, *, max_tokens):
    """m / rows: the log-likelihood of whole responses."""
    return mask_RT / _rows(mask_RT)


def seq_mean_token_sum_norm(mask_RT, *, max_tokens):
    """m / (rows * T) with T = the longest response allowed, a constant: no length bias."""
    return mask_RT / (_rows(mask_RT) * max_tokens)


def _rows(mask_RT):
    return jnp.maximum(masked.sum(jnp.ones(mask_RT.shape[0]), mask_RT.any(1)), 1.0)


AGGREGATES = {
    "token-mean": token_mean,
    "seq-mean-token-mean": seq_mean_token_mean,
    "seq-mean-token-sum": seq_mean_token_sum,
    "seq-mean-token-sum-norm": seq_mean_token_sum_norm,
}
