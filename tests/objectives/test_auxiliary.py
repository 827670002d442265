"""H, A H and the KL to the reference against closed forms; the KL's gradient against the exact one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.model.logprobs import chunked_logprobs
from iiblpo_jax.objectives import make_objective, with_auxiliary
from iiblpo_jax.objectives.auxiliary import AdvantageEntropy, Entropy, k3, reference_kl

FORMS = ("k3", "k2", "k1")
WIDE = make_objective("grpo", max_tokens=2, overrides={"clip_low": 0.99, "clip_high": 9.0})  # nothing is clipped
PI, REF = jnp.array([0.3, 1.1, -0.6]), jax.nn.log_softmax(jnp.array([1.0, -0.2, 0.4]))
OLD, MU = (jax.nn.log_softmax(PI + jnp.array(moved)) for moved in ([0.3, -0.2, 0.1], [-0.2, 0.1, 0.4]))


@pytest.mark.parametrize("kind", [AdvantageEntropy, Entropy])
def test_entropy_gradients_are_the_closed_form(make_batch, kind):
    """d(-c A H) / d logit_v = c A p_v (log p_v + H), from logits to loss; without A it is that of the entropy alone."""
    logits = jnp.array([[[0.2, 1.5, -0.7], [2.0, 0.0, 0.1]]])
    a, coef = jnp.array([[1.3, -0.4]]), 0.25

    def loss(logits):
        _, entropy = chunked_logprobs(logits, jnp.eye(3), jnp.zeros((1, 2), int))
        batch = make_batch(lengths=(2,), entropy_RT=[[0, 0]], advantage_R=a)
        return kind(coef)(batch.replace(entropy_RT=entropy)).sum()

    logp = jax.nn.log_softmax(logits)
    entropy = -(jnp.exp(logp) * logp).sum(-1, keepdims=True)
    scale = a[..., None] if kind is AdvantageEntropy else 1.0
    np.testing.assert_allclose(jax.grad(loss)(logits), coef * scale * jnp.exp(logp) * (logp + entropy), atol=1e-6)


def test_k3_by_hand():
    """pi 0.5 against ref 0.25: 1/2 - log(1/2) - 1."""
    np.testing.assert_allclose(k3(jnp.log(0.5) - jnp.log(0.25)), 0.5 + np.log(2) - 1, rtol=1e-6)
    assert k3(jnp.float32(0)) == 0
    np.testing.assert_allclose(k3(jnp.float32(1e-3)), 0.5e-6 - 1e-9 / 6, rtol=1e-3)  # two policies that are nearly one


def of_tokens(make_batch, logp_RT, ref_RT, old_RT, mu_RT):
    """A Batch of responses to one prompt that mu drew, their advantages 0."""
    r, t = logp_RT.shape
    batch = make_batch(lengths=(t,) * r, advantage_R=np.zeros(r))
    weights = jnp.exp(old_RT - mu_RT)
    batch = batch.replace(logp_RT=logp_RT, old_logp_RT=old_RT, importance_RT=weights)
    return batch.replace(rows=batch.rows.replace(ref_logp_RT=ref_RT))


def kl(logits):
    logp = jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(logp) * (logp - REF))


DREW = {"pi": (None, None), "pi_old": (OLD, OLD), "another": (OLD, MU)}


@pytest.mark.parametrize("drew", DREW)
@pytest.mark.parametrize("form", FORMS)
def test_the_expected_gradient_is_that_of_the_kl(make_batch, form, drew):
    """KL(pi || ref) of a policy over three tokens, each of them a row as likely as whoever drew it says."""
    method = with_auxiliary(WIDE, kl_coef=0.7, kl_form=form)

    def loss(logits):
        logp = jax.nn.log_softmax(logits)
        old, mu = (jax.lax.stop_gradient(logp) if x is None else x for x in DREW[drew])
        batch = of_tokens(make_batch, *(x[:, None] for x in (logp, REF, old, mu)))
        return method.loss(batch, jnp.exp(mu)[:, None])[0]

    np.testing.assert_allclose(jax.grad(loss)(PI), 0.7 * jax.grad(kl)(PI), atol=1e-6)
    if form == "k3":
        np.testing.assert_allclose(loss(PI), 0.7 * kl(PI), rtol=1e-5)


def test_unweighted_k3_has_the_gradient_of_another_kl():
    """Why `k3` has weights: without them it is KL(ref || pi), also under pi, and the two differ."""
    p = jax.lax.stop_gradient(jax.nn.softmax(PI))
    naive = jax.grad(lambda logits: jnp.sum(p * k3(jax.nn.log_softmax(logits) - REF)))(PI)
    reverse = jax.grad(lambda logits: -jnp.sum(jnp.exp(REF) * jax.nn.log_softmax(logits)))(PI)
    np.testing.assert_allclose(naive, reverse, atol=1e-6)
    assert jnp.abs(naive - jax.grad(kl)(PI)).max() > 0.05


@pytest.mark.parametrize("form", FORMS)
def test_what_a_token_answers_for(make_batch, form):
    """Of two tokens the first decides how far from the reference the second can be: `k1` says so, a loss does not."""
    rng = np.random.default_rng(0)
    params = jnp.asarray(rng.normal(size=(3, 3))), PI
    ref_2 = jax.nn.log_softmax(jnp.asarray(rng.normal(size=(3, 3))))
    method = with_auxiliary(WIDE, kl_coef=1.0, kl_form=form)

    def responses(first, second_12):  # [9, 2], whoever says so
        return jnp.stack([jnp.repeat(first, 3), second_12.reshape(-1)], axis=1)

    def policy(params):
        return jax.nn.log_softmax(params[1]), jax.nn.log_softmax(params[0])

    def loss(params):
        logp_RT = responses(*policy(params))
        drew_RT = jax.lax.stop_gradient(logp_RT)
        batch = of_tokens(make_batch, logp_RT, responses(REF, ref_2), drew_RT, drew_RT)
        return method.loss(batch, jnp.exp(drew_RT.sum(1, keepdims=True)) * jnp.ones((1, 2)))[0]

    def exact(params):
        first, second_12 = policy(params)
        reached = jnp.exp(first) if form == "k1" else jax.lax.stop_gradient(jnp.exp(first))
        return kl(params[1]) + jnp.sum(reached[:, None] * jnp.exp(second_12) * (second_12 - ref_2))

    for found, wanted in zip(jax.grad(loss)(params), jax.grad(exact)(params), strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_what_does_not_count_answers_for_nothing(make_batch):
    """Off the reward: log-ratios of tokens that count, from each token on; and all else of the advantage stays."""
    plain = make_objective("entropy_adv", max_tokens=10)
    batch = make_batch(lengths=(4, 2))
    rows = batch.rows.replace(mask_RT=batch.rows.mask_RT.at[0, 1].set(0))
    batch = batch.replace(rows=rows.replace(ref_logp_RT=rows.ref_logp_RT.at[1, 3].set(jnp.nan)))
    change = with_auxiliary(plain, kl_coef=0.5, kl_form="k1").advantage_transform(batch)
    k = np.nan_to_num(np.asarray(batch.logp_RT - batch.rows.ref_logp_RT)) * np.asarray(batch.rows.mask_RT)
    following = [[k[r, t:].sum() for t in range(4)] for r in range(2)]
    np.testing.assert_allclose(change, plain.advantage_transform(batch) - 0.5 * np.array(following), rtol=1e-5)


def test_a_loss_of_whole_groups_has_no_reward_to_take_it_off():
    grouped = dataclasses.replace(WIDE, group_loss=lambda batch: batch.logp_RT.sum())
    with pytest.raises(InputError, match=r"update\.kl_form = k1 .* loss of grpo .* use update\.kl_form=k3"):
        with_auxiliary(grouped, kl_coef=0.1, kl_form="k1")


def test_terms_are_added_under_the_methods_weights(make_batch):
    batch = make_batch()
    plain = make_objective("grpo", max_tokens=10)

    def loss(o):
        return o.loss(batch, o.weights(batch))[0]

    mask = np.asarray(batch.rows.mask_RT)
    a_h = (mask * batch.rows.advantage_RT * batch.entropy_RT).sum() / mask.sum()
    d = np.asarray(batch.rows.ref_logp_RT - batch.logp_RT)
    ratio = np.exp(np.asarray(batch.logp_RT - batch.old_logp_RT))
    kl_RT = ratio * (np.exp(d) - d - 1)
    np.testing.assert_allclose(reference_kl(batch), kl_RT, rtol=1e-4, atol=1e-6)
    kl = (mask * kl_RT).sum() / mask.sum()
    got = loss(with_auxiliary(plain, entropy_coef=0.3, kl_coef=0.7)) - loss(plain)
    np.testing.assert_allclose(got, -0.3 * a_h + 0.7 * kl, rtol=1e-4)


def test_zero_coefficients_leave_the_method_as_it_is():
    plain = make_objective("grpo", max_tokens=10)
    assert with_auxiliary(plain) == plain
