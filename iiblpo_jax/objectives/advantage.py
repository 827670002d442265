"""Group-relative advantages: functions Rows -> A_R over the kept rows of each prompt.

The mean is that of the rows that Rows.baseline_R names: the kept ones, or the prompt's roots where it depends on what
these said which of them have branches. Then the gradient is that of the roots, unbiased, plus that of how to go on at
the branch points (docs/decisions.md).
"""

import jax.numpy as jnp

from iiblpo_jax.common import masked
from iiblpo_jax.objectives.rows import Rows

STD_EPSILON = 1e-6


def centred(o: Rows):
    """R - mean, exactly 0 in groups whose rewards are all equal (a rounded mean must not leave a residue)."""
    centred_R = o.reward_R - masked.group_mean(o.reward_R, o.group_R, _baseline(o))
    return jnp.where(masked.group_spread(o.reward_R, o.group_R, o.keep_R) > 0, centred_R, 0.0)


def standardised(o: Rows):
    """(R - mean) / (std + 1e-6), sample standard deviation (ddof 1), 0 in groups without spread."""
    return centred(o) / (masked.group_std(o.reward_R, o.group_R, o.keep_R, ddof=1) + STD_EPSILON)


def leave_one_out(o: Rows):
    """R_i - mean of the others = n / (n - 1) * (R_i - mean); 0 in groups of one."""
    n_R = masked.group_count(o.group_R, _baseline(o))
    among_R = _baseline(o) != 0  # the mean holds R_i itself
    return centred(o) * jnp.where(among_R, n_R / jnp.maximum(n_R - 1.0, 1.0), 1.0)


def _baseline(o: Rows):
    return o.keep_R if o.baseline_R is None else o.baseline_R
