"""Group-relative advantages: functions Rows -> A_R over the kept rows of each prompt.

The mean is that of the rows that Rows.baseline_R names: the kept ones, or the prompt's roots where it depends on what
these said which of them have branches. Then the gradient is that of the roots, unbiased, plus that of how to go on at
the branch points (docs/decisions.md). Rows.weight_R weighs mean and standard deviation.
"""

import jax
import jax.numpy as jnp

from iiblpo_jax.common import masked
from iiblpo_jax.objectives.rows import Rows

STD_EPSILON = 1e-6


def centred(o: Rows):
    """R - mean, exactly 0 in groups whose rewards are all equal (a rounded mean must not leave a residue)."""
    centred_R = o.reward_R - group_mean(o)
    return jnp.where(masked.group_spread(o.reward_R, o.group_R, o.keep_R) > 0, centred_R, 0.0)


def standardised(o: Rows):
    """(R - mean) / (std + 1e-6), sample standard deviation (ddof 1), 0 in groups without spread."""
    return centred(o) / (group_std(o) + STD_EPSILON)


def leave_one_out(o: Rows):
    """R_i - mean of the others = n / (n - 1) * (R_i - mean); 0 in groups of one. With weights n is their sum, 1 w_i."""
    among_R = _baseline(o) != 0  # the mean holds R_i itself
    if o.weight_R is None:
        n_R = masked.group_count(o.group_R, among_R)
        return centred(o) * jnp.where(among_R, n_R / jnp.maximum(n_R - 1.0, 1.0), 1.0)
    total_R = masked.group_sum(o.weight_R, o.group_R, among_R)
    others_R = total_R - o.weight_R
    return centred(o) * jnp.where(among_R & (others_R > 0), total_R / others_R, 1.0)


def group_mean(o: Rows) -> jax.Array:
    """[R] mean reward that a row is compared with."""
    return masked.group_mean(o.reward_R, o.group_R, _baseline(o), weight_N=o.weight_R)


def group_std(o: Rows) -> jax.Array:
    """[R] sample standard deviation of the kept rewards of its group (ddof 1)."""
    return masked.group_std(o.reward_R, o.group_R, o.keep_R, ddof=1, weight_N=o.weight_R)


def _baseline(o: Rows):
    return o.keep_R if o.baseline_R is None else o.baseline_R
