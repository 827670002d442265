"""What training changes."""

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """Everything training changes.

    Attributes:
      params: {'policy': Decoder weights, 'psa': PSA weights (absent without a latent)}, float32.
      opt_state: of optimizer.make_optimizer.
      step: int32 scalar, updates done (one a rollout).
      moved: int32 scalar, those of them that changed the params; the learning rate's schedule goes by it.
    """

    params: dict
    opt_state: optax.OptState
    step: jax.Array
    moved: jax.Array


def init_state(params: dict, optimizer: optax.GradientTransformation) -> TrainState:
    """A fresh state at step 0."""
    return TrainState(params=params, opt_state=optimizer.init(params), step=jnp.int32(0), moved=jnp.int32(0))
