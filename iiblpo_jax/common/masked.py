"""Masked reductions: the one place where "over the tokens that count" is spelled out.

Masks are 1 (or True) where an entry counts and broadcast against `x`. Masked-out entries may be anything, NaN included.
An empty selection gives 0, never NaN.
"""

import jax
import jax.numpy as jnp


def sum(x, mask, axis=None, keepdims=False):
    """Sum of the entries of `x` that count."""
    return jnp.sum(jnp.where(_bool(mask), x, 0.0), axis=axis, keepdims=keepdims)


def count(x, mask, axis=None, keepdims=False):
    """How many entries of `x` count, as float32."""
    return jnp.sum(jnp.broadcast_to(_bool(mask), jnp.shape(x)), axis=axis, keepdims=keepdims, dtype=jnp.float32)


def mean(x, mask, axis=None, keepdims=False, *, weight=None):
    """Mean of the entries of `x` that count, in proportion to `weight` where there is one; 0 where there are none."""
    if weight is None:
        return sum(x, mask, axis, keepdims) / jnp.maximum(count(x, mask, axis, keepdims), 1.0)
    return _ratio(sum(x * weight, mask, axis, keepdims), sum(weight, mask, axis, keepdims))


def var(x, mask, axis=None, keepdims=False, *, ddof=0):
    """Variance of the entries that count, two passes; 0 where there are `ddof` of them or fewer."""
    squares = jnp.square(jnp.where(_bool(mask), x - mean(x, mask, axis, keepdims=True), 0.0))
    return sum(squares, mask, axis, keepdims) / jnp.maximum(count(x, mask, axis, keepdims) - ddof, 1.0)


def std(x, mask, axis=None, keepdims=False, *, ddof=0):
    """Standard deviation of the entries that count (see `var`)."""
    return jnp.sqrt(var(x, mask, axis, keepdims, ddof=ddof))


def max(x, mask, axis=None, *, initial=0.0):
    """Maximum of the entries that count and `initial`."""
    return jnp.max(jnp.where(_bool(mask), x, initial), axis=axis, initial=initial)


def spread(x, mask, axis=None):
    """Largest minus smallest of the entries that count: exactly 0 iff they are all equal, which a rounded `std` is not.

    0 where there are none.
    """
    high = jnp.max(jnp.where(_bool(mask), x, -jnp.inf), axis=axis)
    low = jnp.min(jnp.where(_bool(mask), x, jnp.inf), axis=axis)
    return jnp.where(high >= low, high - low, 0.0)


# Group-wise reductions. A group is the set of rows with the same label in group_N (any integers, in any order); each
# row receives its group's value, so results line up with x_N and do not depend on how rows are ordered.


def group_sum(x_N, group_N, mask_N=None):
    """[N] sum over the rows of the same group that count."""
    return _per_group(jax.ops.segment_sum, _select(x_N, mask_N, 0.0), group_N)


def group_count(group_N, mask_N=None):
    """[N] number of rows of the same group that count, float32."""
    return group_sum(jnp.ones(group_N.shape, jnp.float32), group_N, mask_N)


def group_mean(x_N, group_N, mask_N=None, *, weight_N=None):
    """[N] mean over the rows of the same group that count, in proportion to `weight_N`; 0 where none does."""
    if weight_N is None:
        return group_sum(x_N, group_N, mask_N) / jnp.maximum(group_count(group_N, mask_N), 1.0)
    return _ratio(group_sum(x_N * weight_N, group_N, mask_N), group_sum(weight_N, group_N, mask_N))


def group_std(x_N, group_N, mask_N=None, *, ddof=0, weight_N=None):
    """[N] standard deviation over the rows of the same group that count; 0 in a group of `ddof` rows or fewer.

    With weights the variance is the weighed mean square, times n / (n - ddof) of the n rows.
    """
    squares_N = jnp.square(x_N - group_mean(x_N, group_N, mask_N, weight_N=weight_N))
    n_N = group_count(group_N, mask_N)
    if weight_N is None:
        return jnp.sqrt(group_sum(squares_N, group_N, mask_N) / jnp.maximum(n_N - ddof, 1.0))
    variance_N = group_mean(squares_N, group_N, mask_N, weight_N=weight_N)
    return jnp.sqrt(variance_N * n_N / jnp.maximum(n_N - ddof, 1.0))


def group_max(x_N, group_N, mask_N=None):
    """[N] largest value of the group's rows that count; 0 where none does."""
    high = _per_group(jax.ops.segment_max, _select(x_N, mask_N, -jnp.inf), group_N)
    return jnp.where(group_count(group_N, mask_N) > 0, high, 0.0)


def group_spread(x_N, group_N, mask_N=None):
    """[N] largest minus smallest value of the group's rows that count: exactly 0 iff they are all equal."""
    high = _per_group(jax.ops.segment_max, _select(x_N, mask_N, -jnp.inf), group_N)
    low = _per_group(jax.ops.segment_min, _select(x_N, mask_N, jnp.inf), group_N)
    return jnp.where(high >= low, high - low, 0.0)


def _ratio(total, weight):
    """total / weight, 0 where there is no weight: there the total is 0, too."""
    return total / jnp.where(weight > 0, weight, 1.0)


def _bool(mask):
    return jnp.asarray(mask) != 0


def _select(x_N, mask_N, other):
    return x_N if mask_N is None else jnp.where(_bool(mask_N), x_N, other)


def _per_group(reduce, x_N, group_N):
    # Labels may exceed the number of rows (a minibatch holds some prompts only), so they are ranked first.
    n = group_N.shape[0]
    _, rank_N = jnp.unique(group_N, return_inverse=True, size=n)
    rank_N = rank_N.reshape(n)
    return reduce(x_N, rank_N, num_segments=n)[rank_N]
