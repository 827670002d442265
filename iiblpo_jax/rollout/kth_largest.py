"""The k-th largest of a row without sorting it: bisection over the bits of non-negative floats.

Such floats are ordered like their bits, so 32 halvings find a threshold exactly. Each costs one sum over the row; to
sort a vocabulary costs twenty times as much on a CPU.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def bits(x: jax.Array) -> jax.Array:
    """int32 in the order of non-negative float32."""
    return jax.lax.bitcast_convert_type(x, jnp.int32)


def least_with_room(bits_BN: jax.Array, room: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """Per row the smallest int32 threshold t >= 0 for which room(bits > t) holds.

    Args:
      bits_BN: -1 for entries that do not take part.
      room: bool [B] of bool [B,N]; true of the empty selection, and false for good once it has become false as the
        selection grows. An entry has room(larger entries) just if its bits reach the threshold.
    """

    def halve(bounds):
        low_B, high_B = bounds  # no room above low, room above high
        middle_B = low_B + (high_B - low_B) // 2
        room_B = room(bits_BN > middle_B[:, None]) & (middle_B > low_B)  # else this row is done
        return jnp.where(room_B, low_B, middle_B), jnp.where(room_B, middle_B, high_B)

    bounds = jnp.full(bits_BN.shape[0], -1, jnp.int32), jnp.maximum(bits_BN.max(-1), 0)
    return jax.lax.while_loop(lambda bounds: (bounds[0] + 1 < bounds[1]).any(), halve, bounds)[1]
