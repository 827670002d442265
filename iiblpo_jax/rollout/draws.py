"""The random numbers of a rollout.

Each is a function of the rollout's key and of the trajectory (and position) that it is for, by its number in the whole
Forest. So nothing depends on which slot or device grows a trajectory, nor on when.
"""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Draws:
    """Numbers and keys of R trajectories.

    Attributes:
      uniform_RT: what every token is drawn with, in [0, 1).
      point_key, latent_key: of branch points and of latents.
      first_row: number in the whole Forest of the first trajectory here, where a mesh has several engines.
    """

    uniform_RT: jax.Array
    point_key: jax.Array
    latent_key: jax.Array
    first_row: jax.Array | int

    def point_keys(self, row_B: jax.Array) -> jax.Array:
        """Keys [B] of the points at which trajectories are branched from."""
        return _keys(self.point_key, self.first_row + row_B)

    def latent_keys(self, row_B: jax.Array) -> jax.Array:
        """Keys [B] of the latents of trajectories, or of what siblings share out between them."""
        return _keys(self.latent_key, self.first_row + row_B)


def draws_for(key: jax.Array, rows: int, max_tokens: int, first_row) -> Draws:
    """The Draws of `rows` trajectories of at most `max_tokens` tokens."""
    token_key, point_key, latent_key = jax.random.split(key, 3)

    def numbers(key):
        return jax.random.uniform(key, (max_tokens,))

    uniform_RT = jax.vmap(numbers)(_keys(token_key, first_row + jnp.arange(rows)))
    return Draws(uniform_RT=uniform_RT, point_key=point_key, latent_key=latent_key, first_row=first_row)


def _keys(key, number_N):
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(number_N)
