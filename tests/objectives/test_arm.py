"""ARM against a loop over trajectories in numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.objectives import advantages, make_objective

REWARD = np.array([1.0, 0, 1, 0.5, 1, 1, 1, 1, 0, 0, 0, 0])  # a mixed group, an all-right one, an all-wrong one
GROUP = np.repeat([0, 1, 2], 4)
LENGTH = np.array([6, 1, 11, 4, 2, 5, 10, 12, 3, 3, 3, 3])
KEEP = np.array([1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1])
PROMPT_LOGP = np.repeat([-0.2, -1.5, -0.7], 4)


@pytest.fixture
def rows(make_rows):
    mask = np.arange(12) < LENGTH[:, None]
    logp = np.where(mask, np.random.default_rng(0).uniform(-3, 0, mask.shape), -50.0)
    extras = {"prompt_logp": PROMPT_LOGP}
    return make_rows(REWARD, GROUP, t=12, mask_RT=mask, length_R=LENGTH, keep_R=KEEP, raw_logp_RT=logp, extras=extras)


def by_hand(rows, *, alpha=0.3, fraction=0.2, all_right=True):
    expected, logp = np.zeros(12), np.asarray(rows.raw_logp_RT, np.float64)
    for g in range(3):
        kept = np.flatnonzero(np.equal(GROUP, g) & (KEEP > 0))
        reward = REWARD[kept]
        if np.ptp(reward) > 0:
            expected[kept] = (reward - reward.mean()) / (reward.std(ddof=1) + 1e-6)
        right = int((reward == 1).sum())
        if right and (all_right or right < len(kept)):
            for i in kept:
                n = int(np.ceil(fraction * LENGTH[i] - 1e-9))
                c = np.exp(np.sort(logp[i, : LENGTH[i]])[: max(1, n)].mean())
                expected[i] += alpha * (np.exp(PROMPT_LOGP[i]) - c)
    return expected


@pytest.mark.parametrize("options", [{}, {"alpha": 1.0, "fraction": 0.5}, {"all_right": False}, {"fraction": 1.0}])
def test_advantages_by_hand(rows, options):
    found = advantages(make_objective("arm", max_tokens=12, overrides=options), rows)
    np.testing.assert_allclose(found, by_hand(rows, **options), rtol=1e-5, atol=1e-6)


def test_a_confident_right_answer_gains_less_than_a_hesitant_one(rows):
    sure = rows.replace(raw_logp_RT=rows.raw_logp_RT.at[0].set(-0.01))
    found = advantages(make_objective("arm", max_tokens=12), sure)
    assert found[0] < found[2]  # both right, of one group


def test_which_groups_it_speaks_of(rows):
    grpo, arm = (np.asarray(advantages(make_objective(name, max_tokens=12), rows)) for name in ("grpo", "arm"))
    left_alone = np.asarray(advantages(make_objective("arm", max_tokens=12, overrides={"all_right": False}), rows))
    assert not arm[8:].any() and not arm[6]  # nobody is right; not kept
    assert not grpo[4:8].any() and np.all(arm[[4, 5, 7]] != 0) and not left_alone[4:8].any()
    np.testing.assert_array_equal(left_alone[:4], arm[:4])


def test_without_alpha_it_is_grpo_to_the_bit(rows, make_batch):
    off = make_objective("arm", max_tokens=12, overrides={"alpha": 0.0, "clip_high": 0.2})
    grpo = make_objective("grpo", max_tokens=12)
    np.testing.assert_array_equal(advantages(off, rows), advantages(grpo, rows))
    batch = make_batch()
    ours, theirs = (o.loss(batch, o.weights(batch))[0] for o in (off, grpo))
    assert ours == theirs


def test_it_needs_the_prompt(rows):
    assert make_objective("arm", max_tokens=12).needs == ("prompt_logp",)
    assert jnp.isfinite(advantages(make_objective("arm", max_tokens=12), rows)).all()
