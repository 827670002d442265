"""Branches without replacement: the expected gradient of a step, exactly, over everything that can happen.

A policy of two tokens a response, h and then c, each 0 or 1. Two roots a prompt; behind each a branch keeps h and takes
the other c. Every outcome of a group is one prompt of a Forest, weighed with its probability.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.common.trees import tree_shape
from iiblpo_jax.objectives import make_objective, with_credit
from iiblpo_jax.objectives.advantage import leave_one_out, standardised
from iiblpo_jax.objectives.weights import prompt_weights
from iiblpo_jax.rollout.forest import STOP, Forest
from iiblpo_jax.step.score import BottleneckSpec, CreditSpec, FilterSpec, ScoreSpec, StrataSpec, every_row, score

FIRST = np.array([0.3, 0.7])  # pi(h)
SECOND = np.array([[0.9, 0.1], [0.2, 0.8]])  # pi(c | h)
REWARD = np.array([[1.0, 0.0], [0.25, 0.75]])  # of (h, c)
VALUE = (SECOND * REWARD).sum(1)
MEAN = float(FIRST @ VALUE)
ROOTS, J = 2, 2
SHAPE = tree_shape(1, 1)
GROUPS = list(itertools.product(itertools.product((0, 1), repeat=2), repeat=ROOTS))
PROBABILITY_P = np.array([np.prod([FIRST[h] * SECOND[h, c] for h, c in group]) for group in GROUPS])


def all_groups() -> Forest:
    """Every outcome of a group: rows root, branch, root, branch."""
    rows = [(h, c, 1.0) if root else (h, 1 - c, 1 - SECOND[h, c]) for g in GROUPS for h, c in g for root in (1, 0)]
    r, p = len(rows), len(GROUPS)
    within, zeros = np.arange(r) % J, np.zeros((r, 2), np.float32)
    fields = {
        "prompt_PS": np.ones((p, 1), np.int32),
        "prompt_len_P": np.ones(p, np.int32),
        "tokens_RT": np.array([row[:2] for row in rows], np.int32),
        "raw_logp_RT": zeros,
        "entropy_RT": zeros,
        "length_R": np.full(r, 2, np.int32),
        "finish_R": np.full(r, STOP, np.int32),
        "parent_R": np.where(within, np.arange(r) - 1, -1).astype(np.int32),
        "branch_at_R": within.astype(np.int32),
        "z_RZ": np.zeros((r, 0), np.float32),
        "fallback_R": np.zeros(r, bool),
        "left_R": np.array([row[2] for row in rows], np.float32),
    }
    return Forest(**{name: jnp.asarray(x) for name, x in fields.items()})


FOREST = all_groups()
H_R, C_R = np.asarray(FOREST.tokens_RT).T
REWARD_R = jnp.asarray(REWARD[H_R, C_R], jnp.float32)
STANDS_FOR = SECOND[H_R, C_R]


def spec_of(objective, *, power=1.0, weight="none"):
    return ScoreSpec(
        bottleneck=BottleneckSpec(),
        filter=FilterSpec(rule="none", keep=J * ROOTS),
        credit=CreditSpec(objective=objective, weight=weight, strata=StrataSpec(shape=SHAPE, power=power)),
    )


def scored(objective, **options):
    return score(FOREST, REWARD_R, {}, jax.random.key(0), jnp.int32(0), spec=spec_of(objective, **options))


def gradient(advantage_RT):
    """Expected sum of A grad log pi, over the true gradient: of the logit of h = 0, and of c = 0 behind h = 0 and 1."""
    weight_R1 = np.repeat(PROBABILITY_P, J * ROOTS)[:, None]
    w_RT = weight_R1 * np.broadcast_to(np.asarray(advantage_RT), (len(H_R), 2))
    first = (w_RT[:, 0] * ((H_R == 0) - FIRST[0])).sum()
    second = [(w_RT[:, 1] * (h == H_R) * ((C_R == 0) - SECOND[h, 0])).sum() for h in (0, 1)]
    truth = [FIRST[0] * (VALUE[0] - MEAN), *(FIRST * SECOND[:, 0] * (REWARD[:, 0] - VALUE))]
    return np.array([first, *second]) / truth


def test_the_gradient_is_the_policys():
    """Of h that of two trees, less their share in the mean; of c that of two trees: a tree is a node's exact value."""
    found = gradient(scored(make_objective("dr_grpo", max_tokens=2)).rows.advantage_R[:, None])
    np.testing.assert_allclose(found, J * ROOTS * np.array([1 - 1 / ROOTS, 1.0, 1.0]), rtol=1e-4)


def test_uncorrected_it_is_another_ones():
    found = gradient(scored(make_objective("dr_grpo", max_tokens=2), power=0.0).rows.advantage_R[:, None])
    assert np.ptp(found[1:]) > 0.5


def test_tree_credit_takes_the_stratified_value_of_a_node():
    """On h: p R_root + (1 - p) R_branch, less the group's weighed mean, over its deviation; all times the weight."""
    objective = with_credit(make_objective("grpo", max_tokens=2), "tree", parent_J=SHAPE.parent_J, local=0.0)
    rows = scored(objective).rows
    by_group = [np.asarray(x).reshape(len(GROUPS), -1) for x in (REWARD_R, J * STANDS_FOR, H_R)]
    found_PGT = np.asarray(rows.advantage_R).reshape(len(GROUPS), -1, 2)
    for reward, w, h, found in zip(*by_group, found_PGT, strict=True):
        mean = np.average(reward, weights=w)
        std = np.sqrt(np.average((reward - mean) ** 2, weights=w) * 4 / 3)
        wanted = w * (VALUE[h] - mean) / (std + 1e-6) if np.ptp(reward) else 0 * w
        np.testing.assert_allclose(found[:, 0], wanted, atol=1e-4)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_statistics_of_a_group_are_weighed(power):
    rows = scored(make_objective("grpo", max_tokens=2), power=power).rows
    found_PG, reward_PG = (np.asarray(x).reshape(len(GROUPS), -1) for x in (rows.advantage_R, REWARD_R))
    raised = (STANDS_FOR**power).reshape(-1, J)
    w_PG = (J * raised / raised.sum(1, keepdims=True)).reshape(len(GROUPS), -1)
    for found, reward, w in zip(found_PG, reward_PG, w_PG, strict=True):
        mean = np.average(reward, weights=w)
        std = np.sqrt(np.average((reward - mean) ** 2, weights=w) * 4 / 3)
        np.testing.assert_allclose(found, w * (reward - mean) / (std + 1e-6) if np.ptp(reward) else 0, atol=1e-4)


def test_a_prompt_is_weighed_by_the_policys_share_of_right_answers():
    plain, weighed = (
        scored(make_objective("grpo", max_tokens=2), weight=w).rows.advantage_R for w in ("none", "maxrl")
    )
    mean_P = np.average(REWARD_R.reshape(len(GROUPS), -1), weights=STANDS_FOR.reshape(len(GROUPS), -1), axis=1)
    np.testing.assert_allclose(weighed, np.asarray(plain) / np.repeat(np.maximum(mean_P, 1 / 8), 4), rtol=1e-4)


def test_equal_weights_are_no_weights():
    rows = every_row(FOREST, REWARD_R, {}, spec_of(make_objective("grpo", max_tokens=2)))
    alike = rows.replace(weight_R=jnp.ones_like(REWARD_R))
    for advantage in (standardised, leave_one_out):
        np.testing.assert_allclose(advantage(alike), advantage(rows), atol=1e-5)
    valid_PG = jnp.ones((len(GROUPS), 4), bool)
    reward_PG = REWARD_R.reshape(valid_PG.shape)
    plain, ones = (
        prompt_weights(reward_PG, valid_PG, weight="surprise", power=0.5, counts_PG=c) for c in (None, 1.0 * valid_PG)
    )
    np.testing.assert_allclose(plain, ones, rtol=1e-6)


def test_leave_one_out_compares_with_the_others_weighed():
    rows = every_row(FOREST, REWARD_R, {}, spec_of(make_objective("rloo", max_tokens=2)))
    w = np.asarray(J * STANDS_FOR)
    found = np.asarray(leave_one_out(rows.replace(weight_R=jnp.asarray(w, jnp.float32))))
    for i in range(len(w)):
        others = [j for j in range(i // 4 * 4, i // 4 * 4 + 4) if j != i]
        wanted = float(REWARD_R[i]) - np.average(REWARD_R[np.array(others)], weights=w[others])
        spread = np.ptp(REWARD_R[i // 4 * 4 : i // 4 * 4 + 4])
        assert found[i] == pytest.approx(wanted if spread else 0.0, abs=1e-5)
