"""What a step is watched by before its update: `reward/*` and `rollout/*`. In graph."""

import jax
import jax.numpy as jnp

from iiblpo_jax.bottleneck import Selection
from iiblpo_jax.common import masked
from iiblpo_jax.rollout.forest import LENGTH, Forest


def reward_metrics(
    reward_PG: jax.Array, correct_PG: jax.Array, grown_PG: jax.Array, selection: Selection
) -> dict[str, jax.Array]:
    """Scalars `reward/*` over what was grown; the spread is that of the kept."""
    spread_P = masked.std(reward_PG, selection.kept_PG, axis=1) > 0
    mixed_P = correct_PG.any(1) & (grown_PG & ~correct_PG).any(1)
    return {
        "reward/mean": masked.mean(reward_PG, grown_PG),
        "reward/pass@1": masked.mean(correct_PG, grown_PG),
        "reward/pass@group": correct_PG.any(1).mean(),
        "reward/frac_zero_std": 1.0 - spread_P.mean(),
        "reward/frac_mixed": mixed_P.mean(),
        "reward/frac_kept": masked.mean(selection.kept_PG, grown_PG),
    }


def rollout_metrics(forest: Forest) -> dict[str, jax.Array]:
    """Scalars `rollout/*` of a Forest; lengths in tokens, entropy in nats over the tokens that were drawn."""
    grown_R = forest.length_R > 0
    branch_R = grown_R & (forest.parent_R >= 0)
    return {
        "rollout/length_mean": masked.mean(forest.length_R, grown_R),
        "rollout/length_p95": jnp.nanpercentile(jnp.where(grown_R, forest.length_R, jnp.nan), 95),
        "rollout/truncated": masked.mean(forest.finish_R == LENGTH, grown_R),
        "rollout/entropy": masked.mean(forest.entropy_RT, forest.own_RT),
        "rollout/branches": branch_R.sum() / (forest.parent_R < 0).sum(),  # a root
        "rollout/branch_fallback": masked.mean(forest.fallback_R, branch_R),
    }
