"""`ib_tpo`: what a segment adds to the chance of the answer, and what it costs to be likely (IB-TPO, arXiv 2605.28109).

    A_n = (p_n - p_q) / (std_g + 1e-6) + lambda * (p_n / p_before - (1 + 1 / beta)) * pi_ref(n)

p is the mean reward of the trajectories that pass through a segment (forks.py), p_q that of the prompt, p_before that
of the segment before n, or p_q. A segment that the reference model finds likely pays unless it raises the chance by a
fifth: that is the price of compression. beta 5 as published; lambda is branch.ib_credit, published .1 (.5 collapses).

Known from a summary of the paper. Ours: segments go from branch point to branch point, where the paper cuts at blank
lines; pi_ref(n) is the geometric mean of its tokens' probabilities, since the product vanishes for all but short
segments; where p_before is 0 the second term is 0; only kept trajectories count; std has ddof 1.
"""

import jax
import jax.numpy as jnp

from iiblpo_jax.common import masked
from iiblpo_jax.objectives.advantage import STD_EPSILON
from iiblpo_jax.objectives.credit.forks import forks_of_kept, segment_bounds, segment_values
from iiblpo_jax.objectives.rows import Rows

BETA = 5.0


def ib_tpo_advantage(o: Rows, *, parent_J: tuple[int, ...], coef: float) -> jax.Array:
    """A_r(t) [R,T] of the module's formula, lambda = coef; 0 where the kept rewards of a prompt are all equal."""
    assert o.ref_logp_RT is not None, "Objective.needs makes `inform` read the reference"

    def by_tree(x_R):
        return x_R.reshape(-1, len(parent_J))

    kept_NJ = by_tree(o.keep_R != 0)
    fork_NJJ = forks_of_kept(by_tree(o.branch_at_R), kept_NJ, parent_J)
    mean_R = masked.group_mean(o.reward_R, o.group_R, o.keep_R)
    std_R1 = masked.group_std(o.reward_R, o.group_R, o.keep_R, ddof=1)[:, None]
    value_RT, before_RT = segment_values(
        by_tree(o.reward_R), kept_NJ.astype(jnp.float32), by_tree(mean_R), fork_NJJ, o.t
    )
    logp_RT = jnp.where(o.mask_RT > 0, o.ref_logp_RT, 0.0)
    likely_RT = jnp.exp(_segment_mean(logp_RT, *segment_bounds(fork_NJJ, by_tree(o.length_R), o.t)))
    rise_RT = jnp.where(before_RT > 0, value_RT / jnp.where(before_RT > 0, before_RT, 1.0) - (1.0 + 1.0 / BETA), 0.0)
    spread_R1 = masked.group_spread(o.reward_R, o.group_R, o.keep_R)[:, None] > 0
    gain_RT = (value_RT - mean_R[:, None]) / (std_R1 + STD_EPSILON) + coef * rise_RT * likely_RT
    return jnp.where(spread_R1, gain_RT, 0.0)


def _segment_mean(x_RT: jax.Array, start_RT: jax.Array, end_RT: jax.Array) -> jax.Array:
    """Mean of x over [start, end) of the same row, for every token; 0 of an empty one."""
    upto_RT1 = jnp.pad(jnp.cumsum(x_RT, axis=1), [(0, 0), (1, 0)])
    total_RT = jnp.take_along_axis(upto_RT1, end_RT, axis=1) - jnp.take_along_axis(upto_RT1, start_RT, axis=1)
    return total_RT / jnp.maximum(end_RT - start_RT, 1)
