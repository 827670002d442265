"""The numbers that an update is watched by."""

import jax
import jax.numpy as jnp

from iiblpo_jax.model.logprobs import response_positions
from iiblpo_jax.update.rows import UpdateRows


def combine_totals(a: dict, b: dict) -> dict:
    """Totals of two disjoint sets of tokens together."""
    return {name: (jnp.maximum if name.endswith("_max") else jnp.add)(a[name], b[name]) for name in a}


def metrics(totals: dict) -> dict:
    """The scalars of one update from the totals of all its optimizer steps; 0 where nothing was counted."""
    t = totals

    def mean(name, over):
        return t[name] / jnp.maximum(t[over], 1.0)

    weights = t["weight_tokens"] * t["weight_square"]
    return {
        "update/loss": mean("loss", "steps"),
        "update/grad_norm": mean("grad_norm", "steps"),
        "update/ratio_mean": mean("ratio", "tokens"),
        "update/clip_low": mean("clip_low", "tokens"),
        "update/clip_high": mean("clip_high", "tokens"),
        "update/kl_ref": mean("kl_ref", "tokens"),
        "update/entropy": mean("entropy", "tokens"),
        "update/skipped": t["skipped"],
        "update/packing_ratio": mean("inputs", "positions"),
        "mismatch/logp_mean": mean("gap", "gap_tokens"),
        "mismatch/logp_max": t["gap_max"],
        "latent/weight_ess": jnp.where(weights > 0, t["weight"] ** 2 / jnp.where(weights > 0, weights, 1.0), 1.0),
    }


def add_up(a, b):
    ((loss_a, totals_a), gradients_a), ((loss_b, totals_b), gradients_b) = a, b
    return (loss_a + loss_b, combine_totals(totals_a, totals_b)), jax.tree.map(jnp.add, gradients_a, gradients_b)


def input_positions(rows: UpdateRows, pieces) -> dict:
    """Input positions that rows with a counted token have, and those that a forward computes for them."""
    inputs_N = jnp.where(rows.mask_NT.any(-1), rows.prompt_len_N + rows.length_N - 1, 0)
    return {"inputs": inputs_N.sum().astype(jnp.float32), "positions": jnp.float32(pieces.positions)}


def z_was_on(rows: UpdateRows):
    """[N,T] 1 where the input that emitted the token had a latent on."""
    if rows.latent is None:
        return jnp.zeros(rows.mask_NT.shape, jnp.float32)
    on_NC = (rows.latent.segment_BT >= 0) & (rows.latent.gamma_BT > 0)
    at_NT = response_positions(rows.prompt_len_N, rows.mask_NT.shape[1])
    return jnp.take_along_axis(on_NC, at_NT, axis=1, mode="clip").astype(jnp.float32)
