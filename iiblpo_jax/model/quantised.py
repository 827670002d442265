"""Matrices as 8-bit integers, with one float32 scale an output channel:

    w[o, i] ~ scale[o] * q[o, i],  scale[o] = max_i |w[o, i]| / 127,  |error| <= scale[o] / 2

The product is (x @ q.T) * scale: the scale belongs to an output channel, hence comes out of the sum.
"""

import jax
import jax.numpy as jnp

from iiblpo_jax.model.layer import Matrix

INT8_MAX = 127.0


def quantise(weight: jax.Array, inputs: int = 1) -> Matrix:
    """Symmetric int8, rounded to nearest, with one float32 scale an output channel: all but the last `inputs` axes."""
    weight = weight.astype(jnp.float32)
    summed = tuple(range(-inputs, 0))
    largest = jnp.abs(weight).max(summed, keepdims=True)
    quantised = jnp.round(weight * (INT8_MAX / jnp.where(largest > 0, largest, 1.0)))
    return Matrix(weight=quantised.astype(jnp.int8), scale=largest.squeeze(summed) / INT8_MAX, inputs=inputs)


def dequantised(matrix: Matrix) -> jax.Array:
    """The entries [*out, *in] in float32, without what a delta adds; of a matrix that is not quantised as they are."""
    weight = matrix.weight.astype(jnp.float32)
    return weight if matrix.scale is None else weight * jnp.expand_dims(matrix.scale, tuple(range(-matrix.inputs, 0)))
