"""REINFORCE++ and UCPO against loops in numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.objectives import advantages, make_objective

REWARD = np.array([1.0, 0, 1, 0.5, 1, 1, 0, 1])
GROUP = np.array([0, 0, 0, 0, 1, 1, 1, 1])
LENGTH = np.array([3, 1, 2, 4, 2, 2, 1, 4])
KEEP = np.array([1, 1, 1, 0, 1, 1, 1, 1])


@pytest.fixture
def rows(make_rows):
    mask = np.arange(4) < LENGTH[:, None]
    logp = np.random.default_rng(0).uniform(-3, 0, mask.shape)
    return make_rows(REWARD, GROUP, t=4, mask_RT=mask, length_R=LENGTH, keep_R=KEEP, raw_logp_RT=logp)


@pytest.mark.parametrize("name", ["reinforce_pp", "reinforce_pp_baseline"])
def test_whitened_over_the_tokens_of_the_rollout(rows, name):
    kept, value = KEEP > 0, REWARD.copy()
    if name.endswith("baseline"):
        for g in (0, 1):
            value[np.equal(GROUP, g)] -= REWARD[np.equal(GROUP, g) & kept].mean()
    tokens = np.repeat(value[kept], LENGTH[kept])
    expected = np.where(kept, (value - tokens.mean()) / np.sqrt(tokens.var(ddof=1) + 1e-8), 0)
    found = advantages(make_objective(name, max_tokens=10), rows)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_equal_rewards_give_no_advantage(rows):
    equal = rows.replace(reward_R=jnp.full(8, 0.3))
    for name in ("reinforce_pp", "reinforce_pp_baseline", "ucpo"):
        np.testing.assert_array_equal(advantages(make_objective(name, max_tokens=10), equal), 0)


def test_ucpo_moves_mass_to_unlikely_right_answers(rows):
    grpo, ucpo = (np.asarray(advantages(make_objective(n, max_tokens=10), rows)) for n in ("grpo", "ucpo"))
    mask, logp = np.asarray(rows.mask_RT), np.asarray(rows.raw_logp_RT)
    mean = (logp * mask).sum(1) / mask.sum(1)
    expected = grpo.copy()
    for g in (0, 1):
        right = np.flatnonzero(np.equal(GROUP, g) & (REWARD == 1) & (KEEP > 0))
        q = np.exp(mean[right]) / np.exp(mean[right]).sum()
        expected[right] *= len(right) * (0.7 / len(right) + 0.3 * (1 / q) / (1 / q).sum())
        assert expected[right].sum() == pytest.approx(grpo[right].sum(), rel=1e-5)
    np.testing.assert_allclose(ucpo, expected, rtol=1e-5)
    assert not np.allclose(ucpo, grpo)


def test_ucpo_without_tau_is_grpo_to_the_bit(rows):
    off = make_objective("ucpo", max_tokens=10, overrides={"tau": 0.0})
    np.testing.assert_array_equal(advantages(off, rows), advantages(make_objective("grpo", max_tokens=10), rows))


def test_ucpo_with_log_probs_far_apart(rows):
    far = rows.replace(raw_logp_RT=rows.raw_logp_RT.at[0].set(-500.0))
    assert jnp.isfinite(advantages(make_objective("ucpo", max_tokens=10), far)).all()
