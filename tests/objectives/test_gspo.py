"""GSPO against a loop over sequences, and its reduction to PPO."""

import jax
import jax.numpy as jnp
import numpy as np

from iiblpo_jax.objectives import make_objective


def value_and_grad(objective, batch):
    def f(logp):
        return objective.loss(batch.replace(logp_RT=logp), objective.weights(batch))[0]

    return jax.value_and_grad(f)(batch.logp_RT)


def test_loss_and_gradient_equal_the_sequence_form(make_batch):
    """mean_i of -min(A s, A clip(s)) with s_i = exp(mean_t log ratio), differentiated as a sequence loss."""
    batch = make_batch(4)
    objective = make_objective("gspo", max_tokens=10, overrides={"clip_low": 0.1, "clip_high": 0.15})

    def sequence_loss(logp):
        n_R = batch.rows.mask_RT.sum(1)
        s_R = jnp.exp(((logp - batch.old_logp_RT) * batch.rows.mask_RT).sum(1) / n_R)
        a_R = batch.rows.advantage_RT[:, 0]
        return -jnp.minimum(a_R * s_R, a_R * jnp.clip(s_R, 0.9, 1.15)).mean()

    for got, expected in zip(
        value_and_grad(objective, batch), jax.value_and_grad(sequence_loss)(batch.logp_RT), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


def test_length_one_is_ppo(make_batch):
    batch = make_batch(6, lengths=(1, 1, 1, 1, 1))
    bounds = {"clip_low": 0.2, "clip_high": 0.28}
    gspo, ppo = (make_objective(name, max_tokens=10, overrides=bounds) for name in ("gspo", "grpo"))
    for got, expected in zip(value_and_grad(gspo, batch), value_and_grad(ppo, batch), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_published_bounds_clip_by_sequence(make_batch):
    batch = make_batch(lengths=(2, 2), old_logp_RT=[[0, 0], [0, 0]], logp_RT=[[0.5, -0.499], [0.5, -0.5]])
    batch = batch.replace(rows=batch.rows.replace(advantage_R=jnp.ones(2)))
    objective = make_objective("gspo", max_tokens=10)
    _, token = objective.loss(batch, objective.weights(batch))
    np.testing.assert_array_equal(token.clip_high_RT, [[1, 1], [0, 0]])  # exp(5e-4) > 1 + 4e-4; exp(0) is inside
