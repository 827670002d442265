"""Entropy-shaped advantage: hand-worked bonuses and its reductions."""

import jax
import jax.numpy as jnp
import numpy as np

from iiblpo_jax.objectives import make_objective


def loss(objective, batch):
    return objective.loss(batch, objective.weights(batch))[0]


def test_bonus_by_hand(make_batch):
    """alpha 0.4, kappa 2: min(0.4 H, |A| / 2)."""
    batch = make_batch(lengths=(2, 2, 1), entropy_RT=[[1, 2], [1, 5], [3, 0]], advantage_R=[[1, 1], [-3, -3], [0, 0]])
    shaped = make_objective("entropy_adv", max_tokens=10).advantage_transform(batch)
    np.testing.assert_allclose(shaped, [[1.4, 1.5], [-2.6, -1.5], [0, 0]], rtol=1e-6)


def test_no_gradient_through_the_entropy(make_batch):
    batch = make_batch()
    objective = make_objective("entropy_adv", max_tokens=10)
    grad = jax.grad(lambda h: loss(objective, batch.replace(entropy_RT=h)))(batch.entropy_RT)
    np.testing.assert_array_equal(grad, jnp.zeros_like(grad))


def test_alpha_zero_is_grpo_with_the_same_clip(make_batch):
    batch = make_batch(8)
    shaped = make_objective("entropy_adv", max_tokens=10, overrides={"alpha": 0.0, "clip_high": 0.2})
    assert loss(shaped, batch) == loss(make_objective("grpo", max_tokens=10), batch)
    assert loss(make_objective("entropy_adv", max_tokens=10), batch) != loss(
        make_objective("dapo", max_tokens=10), batch
    )
