"""The random numbers of a rollout.

Each is a function of a key and of the number of the trajectory (and position) that it is for. So nothing depends on
which slot or device grows a trajectory, nor on when.
"""

import jax
import jax.numpy as jnp
from flax import struct

CODES = 2**31 - 1  # of the keys that codes are shared out with, which are no trajectory's


@struct.dataclass
class Origin:
    """What the random numbers of each prompt are drawn from.

    Attributes:
      key_P: PRNG keys.
      row_P: number of the prompt's first trajectory.
    """

    key_P: jax.Array
    row_P: jax.Array


@struct.dataclass
class Draws:
    """Numbers and keys of R trajectories.

    Attributes:
      uniform_RT: what every token is drawn with, in [0, 1).
      point_key_R, latent_key_R: of branch points and of latents.
      number_R: of the trajectories.
    """

    uniform_RT: jax.Array
    point_key_R: jax.Array
    latent_key_R: jax.Array
    number_R: jax.Array

    def point_keys(self, row_B: jax.Array) -> jax.Array:
        """Keys [B] of the points at which trajectories are branched from."""
        return _keys(self.point_key_R[row_B], self.number_R[row_B])

    def latent_keys(self, row_B: jax.Array) -> jax.Array:
        """Keys [B] of the latents of trajectories, or of what siblings share out between them."""
        return _keys(self.latent_key_R[row_B], self.number_R[row_B])


def in_order(key: jax.Array, prompts: int, group_size: int) -> Origin:
    """One key for all prompts, and trajectories numbered as in the Forest."""
    return Origin(key_P=jnp.broadcast_to(key, (prompts,)), row_P=jnp.arange(prompts) * group_size)


def draws_for(origin: Origin, group_size: int, max_tokens: int) -> Draws:
    """The Draws of `group_size` trajectories of at most `max_tokens` tokens for every prompt."""
    key_P3 = jax.vmap(lambda key: jax.random.split(key, 3))(origin.key_P)
    token_key_R, point_key_R, latent_key_R = (jnp.repeat(key_P3[:, i], group_size) for i in range(3))
    number_R = (origin.row_P[:, None] + jnp.arange(group_size)).ravel()

    def numbers(key):
        return jax.random.uniform(key, (max_tokens,))

    uniform_RT = jax.vmap(numbers)(_keys(token_key_R, number_R))
    return Draws(uniform_RT=uniform_RT, point_key_R=point_key_R, latent_key_R=latent_key_R, number_R=number_R)


def shared_out(origin: Origin, codes: int) -> jax.Array:
    """[P,N]: the order in which the trees of each prompt take its N codes, tree m the m-th and, after N, again.

    A uniform permutation, so that every tree's code is uniform and the trees of a prompt have each as often as any
    other, but for one.
    """
    key_P = _keys(_keys(origin.key_P, jnp.full_like(origin.row_P, CODES)), origin.row_P)
    return jax.vmap(lambda key: jax.random.permutation(key, codes))(key_P)


def _keys(key_N, number_N):
    return jax.vmap(jax.random.fold_in)(key_N, number_N)
