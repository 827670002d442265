"""The record of a rollout while it grows."""

import jax
from flax import struct


@struct.dataclass
class Grown:
    """The Forest while it grows.

    Attributes:
      record_RTX: token, logp, raw logp and entropy of every position side by side, so that a step writes once. A token
        id is exact in float32 below 2^24.
      length_R, finish_R, branch_at_R, fallback_R, z_RZ: as in Forest.
    """

    record_RTX: jax.Array
    length_R: jax.Array
    finish_R: jax.Array
    branch_at_R: jax.Array
    fallback_R: jax.Array
    z_RZ: jax.Array
