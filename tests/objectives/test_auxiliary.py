"""A*H and k3 against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np

from iiblpo_jax.model.logprobs import chunked_logprobs
from iiblpo_jax.objectives import make_objective, with_auxiliary
from iiblpo_jax.objectives.auxiliary import AdvantageEntropy, k3


def test_advantage_entropy_gradient_is_the_closed_form(make_batch):
    """d(-c A H) / d logit_v = c A p_v (log p_v + H), from logits to loss."""
    logits = jnp.array([[[0.2, 1.5, -0.7], [2.0, 0.0, 0.1]]])
    a, coef = jnp.array([[1.3, -0.4]]), 0.25

    def loss(logits):
        _, entropy = chunked_logprobs(logits, jnp.eye(3), jnp.zeros((1, 2), int))
        return AdvantageEntropy(coef)(
            make_batch(lengths=(2,), entropy_RT=[[0, 0]], advantage_R=a).replace(entropy_RT=entropy)
        ).sum()

    logp = jax.nn.log_softmax(logits)
    entropy = -(jnp.exp(logp) * logp).sum(-1, keepdims=True)
    np.testing.assert_allclose(
        jax.grad(loss)(logits), coef * a[..., None] * jnp.exp(logp) * (logp + entropy), atol=1e-6
    )


def test_k3_by_hand():
    """pi 0.5 against ref 0.25: 1/2 - log(1/2) - 1."""
    np.testing.assert_allclose(k3(jnp.log(0.5), jnp.log(0.25)), 0.5 + np.log(2) - 1, rtol=1e-6)
    assert k3(jnp.float32(-1.7), jnp.float32(-1.7)) == 0


def test_k3_is_unbiased():
    """sum_o pi(o) k3(o) = KL(pi || ref) over a whole vocabulary."""
    logp, ref = jax.nn.log_softmax(jnp.array([[0.1, 1.0, -2.0], [0.5, 0.2, 0.0]]))
    np.testing.assert_allclose((jnp.exp(logp) * k3(logp, ref)).sum(), (jnp.exp(logp) * (logp - ref)).sum(), rtol=1e-5)


def test_terms_are_added_under_the_methods_weights(make_batch):
    batch = make_batch()
    plain = make_objective("grpo", max_tokens=10)

    def loss(o):
        return o.loss(batch, o.weights(batch))[0]

    mask = np.asarray(batch.rows.mask_RT)
    a_h = (mask * batch.rows.advantage_RT * batch.entropy_RT).sum() / mask.sum()
    d = np.asarray(batch.rows.ref_logp_RT - batch.logp_RT)
    kl = (mask * (np.exp(d) - d - 1)).sum() / mask.sum()
    got = loss(with_auxiliary(plain, entropy_coef=0.3, kl_coef=0.7)) - loss(plain)
    np.testing.assert_allclose(got, -0.3 * a_h + 0.7 * kl, rtol=1e-4)


def test_zero_coefficients_leave_the_method_as_it_is():
    plain = make_objective("grpo", max_tokens=10)
    assert with_auxiliary(plain) == plain
