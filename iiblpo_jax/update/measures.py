"""The numbers that an update is watched by."""

import jax
import jax.numpy as jnp

from iiblpo_jax.common import masked
from iiblpo_jax.objectives.auxiliary import reference_kl
from iiblpo_jax.objectives.distillation import Distillation
from iiblpo_jax.objectives.interface import Batch, TokenLoss
from iiblpo_jax.objectives.rows import Rows
from iiblpo_jax.update.importance import outside, weighed
from iiblpo_jax.update.settings import UpdateSettings


def totals_of(
    batch: Batch, token: TokenLoss, settings: UpdateSettings, distillation: Distillation | None = None
) -> dict:
    """Sums over tokens, and a maximum (`*_max`): what `metrics` needs, in a form that microbatches can add up."""
    rows, mask = batch.rows, batch.rows.mask_RT
    on = mask * rows.z_on_RT
    weighed_RT = weighed(rows, settings)
    outside_RT = outside(rows, batch.old_logp_RT, settings)
    # Without z in the update, tokens sampled with z differ by design, not by mistake.
    comparable = mask if settings.condition == "conditioned" else mask - on
    gap = jnp.abs(rows.raw_logp_RT - batch.old_logp_RT)
    kl = jnp.zeros_like(mask) if rows.ref_logp_RT is None else reference_kl(batch)
    totals = {
        "tokens": mask.sum(),
        # to learn from: a weight that rejects a token makes it one that does not count
        "taught": masked.sum((rows.advantage_RT != 0) & (batch.importance_RT > 0), mask),
        "ratio": masked.sum(token.ratio_RT, mask),
        "clip_low": masked.sum(token.clip_low_RT, mask),
        "clip_high": masked.sum(token.clip_high_RT, mask),
        "kl_ref": masked.sum(kl, mask),
        "entropy": masked.sum(batch.entropy_RT, mask),
        "weight": masked.sum(batch.importance_RT, weighed_RT),
        "weight_square": masked.sum(jnp.square(batch.importance_RT), weighed_RT),
        "weight_tokens": weighed_RT.sum(),
        "outside": masked.sum(outside_RT, weighed_RT),
        "gap": masked.sum(gap, comparable),
        "gap_tokens": comparable.sum(),
        "gap_max": masked.max(gap, comparable),
    }
    if distillation is not None:
        counted_RT = distillation.counted(rows)
        totals["distilled"], totals["divergence"] = counted_RT.sum(), masked.sum(batch.divergence_RT, counted_RT)
        totals["taught"] += totals["distilled"]
    return jax.lax.stop_gradient(totals)


def combine_totals(a: dict, b: dict) -> dict:
    """Totals of two disjoint sets of tokens together."""
    return {name: (jnp.maximum if name.endswith("_max") else jnp.add)(a[name], b[name]) for name in a}


def metrics(totals: dict) -> dict:
    """The scalars of one update from the totals of all its optimizer steps; 0 where nothing was counted.

    Loss and gradient norm are means over the minibatches of which some token counts.
    """
    t = totals

    def mean(name, over):
        return t[name] / jnp.maximum(t[over], 1.0)

    weights = t["weight_tokens"] * t["weight_square"]
    distilled = {}
    if "distilled" in t:
        distilled["update/divergence"] = mean("divergence", "distilled")
        distilled["update/distilled"] = mean("distilled", "tokens")
    return distilled | {
        "update/loss": mean("loss", "steps"),
        "update/grad_norm": mean("grad_norm", "steps"),
        "update/ratio_mean": mean("ratio", "tokens"),
        "update/clip_low": mean("clip_low", "tokens"),
        "update/clip_high": mean("clip_high", "tokens"),
        "update/kl_ref": mean("kl_ref", "tokens"),
        "update/entropy": mean("entropy", "tokens"),
        "update/skipped": t["skipped"],
        "update/empty": t["empty"],
        "update/packing_ratio": mean("inputs", "positions"),
        "update/tokens": t["nodes"],
        "mismatch/logp_mean": mean("gap", "gap_tokens"),
        "mismatch/logp_max": t["gap_max"],
        "mismatch/outside": mean("outside", "weight_tokens"),
        "latent/weight_ess": jnp.where(weights > 0, t["weight"] ** 2 / jnp.where(weights > 0, weights, 1.0), 1.0),
    }


def add_up(a, b):
    """((loss, totals), gradients) of two pieces together."""
    ((loss_a, totals_a), gradients_a), ((loss_b, totals_b), gradients_b) = a, b
    return (loss_a + loss_b, combine_totals(totals_a, totals_b)), jax.tree.map(jnp.add, gradients_a, gradients_b)


def input_positions(rows: Rows, pieces) -> dict:
    """Input positions that rows with a counted token have, how many of them differ, and what a forward computes."""
    counts = {"inputs": rows.inputs_R.sum(), "nodes": pieces.nodes, "positions": pieces.positions}
    return {name: jnp.float32(count) for name, count in counts.items()}
