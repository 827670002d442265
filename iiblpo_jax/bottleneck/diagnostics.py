"""The `ib/*` metrics: is the score worth ranking by, and what did the filter do? All in graph."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from iiblpo_jax.bottleneck.selection import Selection
from iiblpo_jax.common import masked


def auc_within_prompts(score_PG: jax.Array, correct_PG: jax.Array, valid_PG: jax.Array) -> jax.Array:
    """Share of (right, wrong) pairs of the same prompt in which the right one scores higher; ties half, no pair 0.5."""
    right, wrong = correct_PG & valid_PG, ~correct_PG & valid_PG
    pair_PGG = right[:, :, None] & wrong[:, None, :]
    difference_PGG = score_PG[:, :, None] - score_PG[:, None, :]
    wins_PGG = jnp.where(pair_PGG, 0.5 * (1 + jnp.sign(difference_PGG)), 0.0)
    pairs = jnp.sum(pair_PGG)
    return jnp.where(pairs > 0, jnp.sum(wins_PGG) / jnp.maximum(pairs, 1), 0.5)


def correlation_within_prompts(x_PG: jax.Array, y_PG: jax.Array, valid_PG: jax.Array) -> jax.Array:
    """Pearson correlation after both are centred on their prompt's mean; 0 if either does not vary."""

    def centre(v_PG):
        return jnp.where(valid_PG, v_PG - masked.mean(v_PG, valid_PG, axis=1, keepdims=True), 0.0)

    x_PG, y_PG = centre(x_PG), centre(y_PG)
    scale = jnp.sqrt(jnp.sum(x_PG**2) * jnp.sum(y_PG**2))
    return jnp.where(scale > 1e-12, jnp.sum(x_PG * y_PG) / jnp.maximum(scale, 1e-12), 0.0)


def bottleneck_metrics(
    score_PG: jax.Array,
    selection: Selection,
    correct_PG: jax.Array,
    length_PG: jax.Array,
    valid_PG: jax.Array,
    *,
    terms: Mapping[str, jax.Array],
) -> dict[str, jax.Array]:
    """Scalars named `ib/*`.

    `terms`: `ib_answer` and `ib_prompt` [R] of the likelihood estimator, raw; empty where there are none to report.
    `ib/answer` and `ib/prompt` are raw nats, `ib/prompt` whatever compression term is used (`ib.compression`);
    `ib/kept_correct` is the share of right answers among the kept;
    `ib/contrast_rescued` is the number of prompts in which `keep_contrast` swapped a trajectory in.
    """
    metrics = {
        "ib/score": masked.mean(score_PG, valid_PG),
        "ib/kept_score": masked.mean(score_PG, selection.kept_PG),
        "ib/kept_correct": masked.mean(correct_PG, selection.kept_PG),
        "ib/auc_correct": auc_within_prompts(score_PG, correct_PG, valid_PG),
        "ib/corr_length": correlation_within_prompts(score_PG, length_PG, valid_PG),
        "ib/contrast_rescued": jnp.sum(selection.rescued_P),
    }
    raw = {name.replace("_", "/"): masked.mean(x_R.reshape(score_PG.shape), valid_PG) for name, x_R in terms.items()}
    return metrics | raw
