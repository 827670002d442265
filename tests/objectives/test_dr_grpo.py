"""Dr. GRPO: closed forms, and its known relation to GRPO and DisCO-b."""

import jax
import jax.numpy as jnp
import numpy as np

from iiblpo_jax.objectives import advantages, make_objective


def first_step_gradient(objective, batch, reward):
    """d loss / d logp at pi = pi_old with the objective's own advantages."""
    rows = batch.rows.replace(reward_R=reward)
    batch = batch.replace(rows=rows.replace(advantage_R=advantages(objective, rows)), old_logp_RT=batch.logp_RT)
    return jax.grad(lambda logp: objective.loss(batch.replace(logp_RT=logp), objective.weights(batch))[0])(
        batch.logp_RT
    )


def test_gradient_by_hand(make_batch):
    """A = R - mean; every token of every response has gradient -A / (rows * T) with T = 10."""
    batch = make_batch(lengths=(2, 1), group_R=[0, 0])
    grad = first_step_gradient(make_objective("dr_grpo", max_tokens=10), batch, jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(grad, [[-0.5 / 20, -0.5 / 20], [0.5 / 20, 0]], rtol=1e-6)


def test_padding_does_not_enter_the_length_constant(make_batch):
    objective = make_objective("dr_grpo", max_tokens=10)
    batch = make_batch()

    def widen(tree):
        wide = {f: x for f, x in vars(tree).items() if f.endswith("_RT") and x is not None}
        return tree.replace(**{f: jnp.pad(x, ((0, 0), (0, 9))) for f, x in wide.items()})

    wide = widen(batch).replace(rows=widen(batch.rows))

    def loss(b):
        return objective.loss(b, objective.weights(b))[0]

    np.testing.assert_allclose(loss(wide), loss(batch), rtol=1e-6)


def disco_b(batch, logp, positive):
    """DisCO-b with the L-ratio score on one group: -(mean of positives' scores - mean of negatives')."""
    score_R = (jnp.exp(logp - batch.old_logp_RT) * batch.rows.mask_RT).sum(1) / batch.rows.mask_RT.sum(1)
    weight_R = jnp.where(positive, 1 / positive.sum(), -1 / (~positive).sum())
    return -(weight_R * score_R).sum()


def test_weight_against_disco_is_the_variance_of_the_outcome(make_batch):
    """seq-mean-token-mean: Dr.GRPO = p (1-p) DisCO-b and GRPO (population std) = sqrt(p (1-p)) DisCO-b."""
    batch = make_batch(lengths=(4, 2, 5, 1, 3, 2), group_R=np.zeros(6))
    batch = batch.replace(old_logp_RT=batch.logp_RT)
    positive, p, n = jnp.array([True, False, True, True, False, True]), 4 / 6, 6
    disco = jax.grad(lambda logp: disco_b(batch, logp, positive))(batch.logp_RT)
    overrides = {"aggregate": "seq-mean-token-mean"}
    reward = positive.astype(jnp.float32)
    dr = first_step_gradient(make_objective("dr_grpo", max_tokens=10, overrides=overrides), batch, reward)
    grpo = first_step_gradient(make_objective("grpo", max_tokens=10, overrides=overrides), batch, reward)
    np.testing.assert_allclose(dr, p * (1 - p) * disco, rtol=1e-5)
    sample_std = (p * (1 - p) * n / (n - 1)) ** 0.5
    np.testing.assert_allclose(grpo, p * (1 - p) / (sample_std + 1e-6) * disco, rtol=1e-5)
