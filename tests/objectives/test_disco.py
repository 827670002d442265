"""DisCO against a loop over questions, its constraint, and how its gradient relates to GRPO's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.objectives import advantages, make_objective

REWARD = np.array([1.0, 0, 0, 1, 1, 1, 0, 0])  # a mixed question, an all-right one, an all-wrong one
GROUP = np.array([0, 0, 0, 0, 1, 1, 2, 2])


def loss_of(objective, batch):
    return objective.loss(batch, objective.weights(batch))[0]


@pytest.fixture
def batch(make_batch):
    return make_batch(7, lengths=(4, 2, 5, 1, 3, 3, 2, 4), reward_R=REWARD, group_R=GROUP)


def by_hand(batch, score, tau, hardest, beta, delta):
    logp, old, mask = (np.asarray(x, np.float64) for x in (batch.logp_RT, batch.old_logp_RT, batch.rows.mask_RT))
    what = np.exp(logp - old) if score == "ratio" else logp
    s = (what * mask).sum(1) / mask.sum(1)
    gaps = []
    for q in range(3):
        right, wrong = s[np.equal(GROUP, q) & (REWARD == 1)], s[np.equal(GROUP, q) & (REWARD == 0)]
        if not (len(right) and len(wrong)):
            gaps.append(0.0)
            continue
        against = tau * np.log(np.exp(wrong / tau).mean()) if hardest else wrong.mean()
        gaps.append(right.mean() - against)
    kl = ((old - logp) * mask).sum() / mask.sum()
    return -np.mean(gaps) + max(beta * (kl - delta), 0) * kl


@pytest.mark.parametrize("score, tau", [("ratio", 1.0), ("logp", 10.0)])
@pytest.mark.parametrize("negatives", ["hardest", "mean"])
def test_loss_by_hand(batch, score, tau, negatives):
    objective = make_objective("disco", max_tokens=10, overrides={"score": score, "negatives": negatives})
    expected = by_hand(batch, score, tau, negatives == "hardest", 1e3, 1e-4)
    assert loss_of(objective, batch) == pytest.approx(expected, rel=1e-4)


def test_the_constraint_pulls_beyond_delta_alone(batch):
    """Its gradient is beta (KL - delta) dKL: 0 within delta; outside, that of half a squared hinge."""
    shift = batch.replace(old_logp_RT=batch.logp_RT + 0.05)  # KL .05

    def gradient(delta):
        objective = make_objective("disco", max_tokens=10, overrides={"delta": delta, "beta": 10.0})
        return jax.grad(lambda logp: loss_of(objective, shift.replace(logp_RT=logp)))(shift.logp_RT)

    pull = np.asarray(gradient(0.01) - gradient(0.06))
    mask = np.asarray(batch.rows.mask_RT)
    np.testing.assert_allclose(pull, -10.0 * (0.05 - 0.01) * mask / mask.sum(), rtol=1e-3, atol=1e-7)


def test_rows_without_a_counted_token_are_no_answers(batch):
    """As fillers of a group that kept too few are."""
    objective = make_objective("disco", max_tokens=10, overrides={"beta": 0.0})
    silent = batch.rows.replace(mask_RT=batch.rows.mask_RT.at[1].set(0.0))
    without = jax.tree.map(lambda x: jnp.delete(x, 1, axis=0) if x.ndim else x, batch)
    assert loss_of(objective, batch.replace(rows=silent)) == pytest.approx(float(loss_of(objective, without)), rel=1e-6)


def test_on_policy_gradient_is_that_of_dr_grpo_over_p_one_minus_p(make_batch):
    """DisCO-b by ratio, one group with p = 1/4: seq-mean-token-mean of R - mean is p (1 - p) times it."""
    reward = np.array([1.0, 0, 0, 0])
    batch = make_batch(9, lengths=(4, 2, 5, 1), reward_R=reward, group_R=np.zeros(4, int))
    batch = batch.replace(old_logp_RT=batch.logp_RT)
    disco = make_objective("disco", max_tokens=10, overrides={"negatives": "mean"})
    dr_grpo = make_objective("dr_grpo", max_tokens=10, overrides={"aggregate": "seq-mean-token-mean"})
    rows = batch.rows.replace(advantage_R=advantages(dr_grpo, batch.rows))
    ours, theirs = (
        jax.grad(lambda logp, o=o: loss_of(o, batch.replace(rows=rows, logp_RT=logp)))(batch.logp_RT)
        for o in (disco, dr_grpo)
    )
    np.testing.assert_allclose(theirs, 0.25 * 0.75 * ours, rtol=1e-5, atol=1e-8)


def test_scores_may_be_far_apart(batch):
    far = batch.replace(logp_RT=batch.logp_RT.at[0].add(-60.0), old_logp_RT=batch.old_logp_RT - 15)
    objective = make_objective("disco", max_tokens=10, overrides={"tau": 0.01})
    value, gradient = jax.value_and_grad(lambda logp: loss_of(objective, far.replace(logp_RT=logp)))(far.logp_RT)
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all()


def test_minibatches_hold_whole_groups():
    objective = make_objective("disco", max_tokens=10)
    assert objective.needs_groups and objective.whole_minibatch
