"""The optimizer: global-norm clipping, AdamW for the policy, Adam for PSA, and one schedule of their learning rates.

The schedule counts rollouts, and of them those that moved the policy: how many optimizer steps a rollout is cut into
(update.minibatches, update.epochs) is nothing to it, and a rollout with nothing to learn from leaves it where it is.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from iiblpo_jax.config.defaults import KNOBS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """Learning rate by rollouts: linear warm-up, the first rollout already moves; then constant, or a cosine to 0.

    Attributes:
      peak: optim.lr.
      kind: optim.schedule.
      warmup: rollouts of the warm-up.
      decay_steps: rollouts after which a cosine is 0, warm-up included.

    Raises:
      InputError: unknown kind.
    """

    peak: float
    kind: str = "constant"
    warmup: int = 0
    decay_steps: int = 1

    def __post_init__(self):
        KNOBS["optim.schedule"].check("optim.schedule", self.kind)

    def share(self, rollouts) -> jax.Array:
        """Share of the peak, from 0 to 1, after so many rollouts (int scalar)."""
        rise = jnp.minimum(1.0, (rollouts + 1) / max(self.warmup, 1))
        if self.kind == "constant":
            return rise
        done = jnp.clip((rollouts - self.warmup) / max(self.decay_steps - self.warmup, 1), 0.0, 1.0)
        return rise * 0.5 * (1.0 + jnp.cos(jnp.pi * done))

    def rate(self, rollouts) -> jax.Array:
        """The policy's learning rate after so many rollouts."""
        return self.peak * self.share(rollouts)


def make_optimizer(optim) -> optax.GradientTransformation:
    """Optimizer of params {'policy': ..., 'psa': ...} ('psa' may be missing), at the peak of both learning rates.

    An adapter, 'lora' in place of 'policy', is trained as the policy.

    Args:
      optim: the config section with lr, psa_lr, b1, b2, weight_decay, clip_norm.
    """
    policy = optax.adamw(optim.lr, b1=optim.b1, b2=optim.b2, weight_decay=optim.weight_decay, mask=decay_mask)
    # No decay on PSA: where z is not injected in the update its gradient is zero and it must stay as it is.
    psa = optax.adam(optim.psa_lr, b1=optim.b1, b2=optim.b2)
    by_part = optax.partition({"policy": policy, "psa": psa}, _part_labels)
    return optax.chain(optax.clip_by_global_norm(optim.clip_norm), by_part)


def decay_mask(params) -> dict:
    """True on weights that decay: all but norms and biases (stacked over layers, so rank does not tell them apart)."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not path[-1].key.endswith(("norm", "bias")), params)


def _part_labels(params):
    names = {part: "policy" if part == "lora" else part for part in params}
    return {part: jax.tree.map(lambda _, part=part: names[part], tree) for part, tree in params.items()}
