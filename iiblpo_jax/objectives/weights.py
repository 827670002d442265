"""What a prompt weighs by how hard it is: one factor on all advantages of its group, usable with every method.

p is the mean reward of all trajectories of the prompt, whatever the filter keeps.

    none        1
    surprise    (-log2 p)^power       the form is ours: -log2 p is I(r; a) of a right answer as the group estimates it
    maxrl       1 / p                 MaxRL, arXiv 2602.02710
    f_grpo      (1 - p)^power         F-GRPO, arXiv 2602.06717; power is its gamma
    pass_at_k   k (1 - p)^(k - 1)     arXiv 2508.10751, 2505.15201; power is k

With 0/1 rewards every method that compares within a group climbs E[w(p) grad p] (Davis & Recht, arXiv 2510.13651), and
these are factors on its w. On R - mean (dr_grpo, rloo), whose w is 1, `maxrl` is (R - mean) / mean, which climbs log p
(its expansion in 1 - p, as many terms as there are trajectories but one), and `pass_at_k` climbs 1 - (1 - p)^k with p
estimated by the group itself. F-GRPO is published on GRPO's advantages.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from iiblpo_jax.common import masked


def prompt_weights(
    reward_PG: jax.Array, valid_PG: jax.Array, *, weight: str, power: float, counts_PG: jax.Array | None = None
) -> jax.Array:
    """[P] factors.

    Args:
      reward_PG: in [0, 1].
      valid_PG: bool, the trajectories that were grown. A mean below that of half a right answer counts as one half.
      weight: a key of WEIGHTS.
      power: see the module.
      counts_PG: how much each counts in the mean (Rows.weight_R); None = all alike.
    """
    floor_P = 0.5 / jnp.maximum(valid_PG.sum(1), 1)
    mean_P = masked.mean(reward_PG, valid_PG, axis=1, weight=counts_PG)
    return WEIGHTS[weight](jnp.clip(mean_P, floor_P, 1.0), power)


def none(p_P: jax.Array, power: float) -> jax.Array:
    """1."""
    del power
    return jnp.ones_like(p_P)


def surprise(p_P: jax.Array, power: float) -> jax.Array:
    """(-log2 p)^power: bits, 1 at p = 1/2."""
    return (-jnp.log2(p_P)) ** power


def maxrl(p_P: jax.Array, power: float) -> jax.Array:
    """1 / p."""
    del power
    return 1.0 / p_P


def f_grpo(p_P: jax.Array, power: float) -> jax.Array:
    """(1 - p)^power."""
    return (1.0 - p_P) ** power


def pass_at_k(p_P: jax.Array, power: float) -> jax.Array:
    """k (1 - p)^(k - 1), k = power."""
    return power * (1.0 - p_P) ** (power - 1.0)


WEIGHTS: dict[str, Callable[[jax.Array, float], jax.Array]] = {
    "none": none,
    "surprise": surprise,
    "maxrl": maxrl,
    "f_grpo": f_grpo,
    "pass_at_k": pass_at_k,
}
