"""DARLING against a loop over pairs of answers."""

import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.objectives import advantages, make_objective

REWARD = np.array([1.0, 0, 1, 1, 1, 1, 1, 0.5])
GROUP = np.array([0, 0, 0, 0, 1, 1, 1, 1])
PLAN = np.array([7, 7, 3, 7, 3, 3, 3, -1])  # 3 means the same in both groups, and is counted in each alone
KEEP = np.array([1, 1, 1, 1, 1, 0, 1, 1])


@pytest.fixture
def darling():
    return make_objective("darling", max_tokens=10)


@pytest.fixture
def rows(make_rows):
    return make_rows(REWARD, GROUP, keep_R=KEEP, extras={"plan": PLAN})


def by_hand(reward=REWARD, group=GROUP, plan=PLAN, keep=KEEP):
    shaped = np.zeros(len(reward))
    for i in range(len(reward)):
        others = [j for j in range(len(reward)) if j != i and group[j] == group[i] and keep[j]]
        shaped[i] = reward[i] * np.mean([plan[j] != plan[i] for j in others])
    found = np.zeros(len(reward))
    for g in set(group):
        mine = np.equal(group, g) & (keep > 0)
        found[mine] = shaped[mine] - shaped[mine].mean()
    return found


def test_advantages_by_hand(darling, rows):
    np.testing.assert_allclose(advantages(darling, rows), by_hand(), atol=1e-6)
    assert (
        by_hand()[2] > by_hand()[0] > by_hand()[1]
    )  # the right answer that nobody else gave, a common one, a wrong one


def test_groups_may_lie_in_any_order(darling, make_rows):
    order = np.random.default_rng(0).permutation(8)
    mixed = make_rows(REWARD[order], 900 + GROUP[order], keep_R=KEEP[order], extras={"plan": PLAN[order]})
    np.testing.assert_allclose(advantages(darling, mixed), by_hand()[order], atol=1e-6)


def test_where_all_differ_it_is_grpo_without_the_deviation_to_the_bit(darling, make_rows):
    rows = make_rows(REWARD, GROUP, extras={"plan": np.arange(8)})
    plain = make_objective("dr_grpo", max_tokens=10)
    np.testing.assert_array_equal(darling.reward_shaping(rows, None), rows.reward_R)
    np.testing.assert_array_equal(advantages(darling, rows), advantages(plain, rows))


def test_from_answers_that_are_all_alike_nothing_is_learnt(darling, rows):
    alike = rows.replace(extras={"plan": jnp.full(8, 2.0)})
    np.testing.assert_array_equal(advantages(darling, alike), 0)
