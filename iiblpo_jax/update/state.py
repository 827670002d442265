"""What training changes."""

import flax.struct
import jax
import jax.numpy as jnp
import optax

from iiblpo_jax.objectives.novelty import Novelty


@flax.struct.dataclass
class TrainState:
    """Everything training changes.

    Attributes:
      params: {'policy': Decoder weights, 'psa': PSA weights (absent without a latent)}, float32.
      opt_state: of optimizer.make_optimizer.
      step: int32 scalar, updates done (one a rollout).
      moved: int32 scalar, those of them that changed the params; the learning rate's schedule goes by it.
      novelty: networks that say what is new; None unless the method asks.
    """

    params: dict
    opt_state: optax.OptState
    step: jax.Array
    moved: jax.Array
    novelty: Novelty | None = None


def init_state(params: dict, optimizer: optax.GradientTransformation, *, novelty: Novelty | None = None) -> TrainState:
    """A fresh state at step 0."""
    opt_state, zero = optimizer.init(params), jnp.int32(0)
    return TrainState(params=params, opt_state=opt_state, step=zero, moved=jnp.int32(0), novelty=novelty)
