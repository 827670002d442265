"""The optimizer: global-norm clipping, AdamW for the policy, Adam for PSA, one learning-rate schedule."""

import jax
import jax.numpy as jnp
import optax

from iiblpo_jax.config.defaults import KNOBS


def make_optimizer(optim, *, total_steps: int) -> optax.GradientTransformation:
    """Optimizer of params {'policy': ..., 'psa': ...} ('psa' may be missing).

    Args:
      optim: the config section with lr, psa_lr, b1, b2, weight_decay, clip_norm, schedule, warmup (optimizer steps).
      total_steps: optimizer steps of the whole run; where the cosine ends.

    Raises:
      InputError: unknown schedule.
    """
    KNOBS["optim.schedule"].check("optim.schedule", optim.schedule)

    def rate(peak):
        return learning_rate(peak, kind=optim.schedule, warmup=optim.warmup, total_steps=total_steps)

    policy = optax.adamw(rate(optim.lr), b1=optim.b1, b2=optim.b2, weight_decay=optim.weight_decay, mask=decay_mask)
    # No decay on PSA: where z is not injected in the update its gradient is zero and it must stay as it is.
    psa = optax.adam(rate(optim.psa_lr), b1=optim.b1, b2=optim.b2)
    by_part = optax.partition({"policy": policy, "psa": psa}, _part_labels)
    return optax.chain(optax.clip_by_global_norm(optim.clip_norm), by_part)


def learning_rate(peak: float, *, kind: str, warmup: int, total_steps: int) -> optax.Schedule:
    """Linear warm-up over `warmup` steps (the first step already moves), then constant or a cosine to 0."""

    def at(count):
        rise = jnp.minimum(1.0, (count + 1) / max(warmup, 1))
        done = jnp.clip((count - warmup) / max(total_steps - warmup, 1), 0.0, 1.0)
        return peak * rise * (0.5 * (1.0 + jnp.cos(jnp.pi * done)) if kind == "cosine" else 1.0)

    return at


def decay_mask(params) -> dict:
    """True on weights that decay: all but norms and biases (stacked over layers, so rank does not tell them apart)."""
    return jax.tree_util.tree_map_with_path(lambda path, _: not path[-1].key.endswith(("norm", "bias")), params)


def _part_labels(params):
    return {part: jax.tree.map(lambda _, part=part: part, tree) for part, tree in params.items()}
