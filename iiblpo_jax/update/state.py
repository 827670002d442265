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
      params: {'policy': Decoder weights, 'psa': PSA weights (absent without a latent)}, float32; 'lora', the weights of
        an adapter, in place of 'policy' where its base is frozen, which is then none of the state.
      opt_state: of optimizer.make_optimizer.
      step: int32 scalar, updates done (one a rollout).
      moved: int32 scalar, those of them that changed the params; the learning rate's schedule goes by it.
      novelty: networks that say what is new; None unless the method asks.
      average: {'policy': Decoder weights}, float32, the exponential average of past policies; None unless it teaches.
    """

    params: dict
    opt_state: optax.OptState
    step: jax.Array
    moved: jax.Array
    novelty: Novelty | None = None
    average: dict | None = None


def init_state(
    params: dict, optimizer: optax.GradientTransformation, *, novelty: Novelty | None = None, averages: bool = False
) -> TrainState:
    """A fresh state at step 0; `averages`: with an average of past policies, of which there is one."""
    opt_state, zero = optimizer.init(params), jnp.int32(0)
    average = {"policy": jax.tree.map(jnp.copy, params["policy"])} if averages else None
    return TrainState(
        params=params, opt_state=opt_state, step=zero, moved=jnp.int32(0), novelty=novelty, average=average
    )


def averaged(average: dict | None, params: dict, decay: float) -> dict | None:
    """The average after one more policy: decay * average + (1 - decay) * policy (Mean Teacher, arXiv 1703.01780)."""
    if average is None:
        return None
    return jax.tree.map(lambda a, w: decay * a + (1 - decay) * w, average, {"policy": params["policy"]})
