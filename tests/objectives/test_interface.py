"""Advantages with the bottleneck's self-reward; the slots a method may fill."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.objectives import advantages, make_objective

GRPO = make_objective("grpo", max_tokens=10)
REWARD = jnp.array([1.0, 0.0, 1.0, 1.0])  # group 0 has spread, group 1 has none
GROUP = jnp.array([0, 0, 1, 1])
SCORE = jnp.array([0.5, -7.0, 3.0, -0.2])


def test_self_reward_is_added_after_normalisation_where_rewards_differ(make_rows):
    """Two rows: z-scores +-1/sqrt(2); S_IB clipped to [-1, 1]; nothing in the group without spread."""
    a = advantages(GRPO, make_rows(REWARD, GROUP, ib_score_R=SCORE), reward_coef=0.1)
    np.testing.assert_allclose(a, [2**-0.5 + 0.05, -(2**-0.5) - 0.1, 0, 0], rtol=1e-5)


def test_self_reward_off_is_plain_grpo(make_rows):
    plain = advantages(GRPO, make_rows(REWARD, GROUP))
    np.testing.assert_array_equal(advantages(GRPO, make_rows(REWARD, GROUP, ib_score_R=SCORE)), plain)


def test_spread_is_judged_over_kept_rows(make_rows):
    """Keeping only equal rewards of a mixed group removes both the advantage and the self-reward."""
    outcomes = make_rows(REWARD[:3], jnp.zeros(3, int), keep_R=jnp.array([1, 0, 1]), ib_score_R=SCORE[:3])
    np.testing.assert_array_equal(advantages(GRPO, outcomes, reward_coef=0.1), 0)


def test_token_level_advantages_and_shaping_slots(make_rows):
    """A method may shape rewards by length and give every token its own advantage."""
    method = dataclasses.replace(
        GRPO,
        reward_shaping=lambda o, step: o.reward_R - 0.5 * (o.length_R > 2),
        advantage=lambda o: o.reward_R[:, None] * jnp.arange(3.0),
    )
    outcomes = make_rows(
        REWARD, GROUP, length_R=jnp.array([3, 1, 1, 3]), ib_score_R=SCORE, keep_R=jnp.array([1, 1, 1, 0])
    )
    a = advantages(method, outcomes, reward_coef=0.1)
    np.testing.assert_allclose(a, [[0.05, 0.55, 1.05], [-0.1, -0.1, -0.1], [0, 1, 2], [0, 0, 0]], rtol=1e-6)


def test_token_mask_enters_the_denominator(make_batch):
    """Keeping the tokens above median entropy halves the count and doubles their weight (80/20 style)."""
    batch = make_batch(lengths=(2, 2), entropy_RT=[[0.1, 0.9], [0.8, 0.2]])
    method = dataclasses.replace(GRPO, token_mask=lambda b: b.rows.mask_RT * (b.entropy_RT > 0.5), whole_minibatch=True)
    np.testing.assert_allclose(method.weights(batch), [[0, 0.5], [0.5, 0]])


def test_group_loss_replaces_policy_loss_but_keeps_auxiliary_terms(make_batch):
    batch = make_batch(lengths=(2, 2))
    method = dataclasses.replace(GRPO, group_loss=lambda b: 3.0 * b.logp_RT.sum(), aux_losses=(lambda b: b.entropy_RT,))
    loss, _ = method.loss(batch, method.weights(batch))
    np.testing.assert_allclose(loss, 3 * batch.logp_RT.sum() + batch.entropy_RT.mean(), rtol=1e-5)


def test_masked_tokens_may_hold_anything(make_batch):
    batch = make_batch()
    dirty = batch.replace(logp_RT=jnp.where(batch.rows.mask_RT > 0, batch.logp_RT, jnp.nan))
    assert GRPO.loss(dirty, GRPO.weights(dirty))[0] == GRPO.loss(batch, GRPO.weights(batch))[0]


@pytest.mark.parametrize("coef", [0.0, 0.1])
def test_row_order_does_not_matter(make_rows, coef):
    order = jnp.array([2, 0, 3, 1])
    straight = advantages(GRPO, make_rows(REWARD, GROUP, ib_score_R=SCORE), reward_coef=coef)
    mixed = advantages(GRPO, make_rows(REWARD[order], GROUP[order], ib_score_R=SCORE[order]), reward_coef=coef)
    np.testing.assert_array_equal(mixed, straight[order])
