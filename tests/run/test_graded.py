"""Which prompts have anything to teach, which P of 2P go on, and what the host says of all that was sampled."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.bottleneck.selection import contrast_priority
from iiblpo_jax.rewards.scorer import Grades
from iiblpo_jax.rollout.forest import LENGTH, STOP
from iiblpo_jax.run.graded import Graded, Verified, first_informative, graded, informative


def problems(*names, task="sums"):
    return tuple(types.SimpleNamespace(id=name, task=task) for name in names)


def made(names, teaches, rewards=None, **columns):
    """Prompts of two responses each."""
    return Graded(
        problems=problems(*names),
        texts=[f"{name}{i}" for name in names for i in range(2)],
        rewards=np.arange(2.0 * len(names)) if rewards is None else rewards,
        informative_P=np.array(teaches),
        columns=columns,
    )


def grades(rewards, **columns):
    nothing = np.full(len(rewards), np.nan, np.float32)
    return Grades(np.array(rewards, np.float32), {"verdict": nothing, "seconds": nothing} | columns, {"timeouts": 1})


def forest(length_R, finish_R, group_size=2):
    parent_R = np.full(len(length_R), -1)
    arrays = {"parent_R": parent_R, "length_R": np.array(length_R), "finish_R": np.array(finish_R)}
    return types.SimpleNamespace(**arrays, group_size=group_size)


def test_informative_prompts_by_hand():
    reward_PG = np.array([[1, 1, 1], [0, 0, 0], [1, 0, 0], [0.2, 0.7, 0.7], [1, 0, 0], [0, 1, 1], [0.3, 0.3, 0.3]])
    valid_PG = np.ones((7, 3), bool)
    valid_PG[4, 0] = valid_PG[5, 0] = False  # what made the difference does not count
    assert informative(reward_PG, valid_PG).tolist() == [False, False, True, True, False, False, False]


def test_they_are_those_of_which_contrast_keeps_anything():
    random = np.random.default_rng(0)
    for step in (1.0, 0.25, 1e-5):  # differences below a ten-thousandth are none
        reward_PG = (random.integers(0, 3, (200, 4)) * step).astype(np.float32).clip(0, 1)
        valid_PG = random.random((200, 4)) < 0.8
        _, contrast_P = contrast_priority(jnp.zeros((200, 4)), jnp.asarray(reward_PG), jnp.asarray(valid_PG))
        found_P = informative(reward_PG, valid_PG)
        np.testing.assert_array_equal(found_P, contrast_P)
        assert found_P.any() == (step > 1e-4) and not found_P.all()


def test_informative_prompts_come_first_each_kind_in_the_order_of_asking():
    kept, fresh = made("abcd", [False, True, False, True]), made("efgh", [False, True, True, True])
    assert first_informative(kept, fresh).tolist() == [1, 3, 5, 6]  # h is let go
    few = made("efgh", [False, False, True, False])
    assert first_informative(kept, few).tolist() == [1, 3, 6, 0]  # a fills the place


def test_merging_in_rounds_is_choosing_from_all_at_once():
    random = np.random.default_rng(1)
    for _ in range(50):
        rounds = [made([f"{i}{name}" for name in "abcd"], random.random(4) < 0.3) for i in range(4)]
        kept = rounds[0]
        for fresh in rounds[1:]:
            kept = kept.merged(fresh, first_informative(kept, fresh))
        everything = [(not ok, i, p) for i, found in enumerate(rounds) for p, ok in enumerate(found.informative_P)]
        wanted = [rounds[i].problems[p] for _, i, p in sorted(everything)[:4]]
        assert list(kept.problems) == wanted
        assert kept.texts == [f"{problem.id}{i}" for problem in wanted for i in range(2)]


def test_merged_rewards_go_with_their_prompts():
    kept = made("ab", [True, False], np.array([0.0, 1, 1, 1]), plan=np.array([7, 8, 7, 9]))
    fresh = made("cd", [False, True], np.array([0, 0, 1, 0]), plan=np.array([1, 2, 3, 3]))
    both = kept.merged(fresh, first_informative(kept, fresh))
    assert [problem.id for problem in both.problems] == ["a", "d"]
    assert both.rewards.tolist() == [0, 1, 1, 0] and both.columns["plan"].tolist() == [7, 8, 3, 3]
    assert both.informative_P.tolist() == [True, True]


@pytest.mark.parametrize(("finished", "teaches"), [(False, [True, True, False]), (True, [True, False, False])])
def test_a_response_that_was_cut_counts_unless_nothing_is_learnt_from_it(finished, teaches):
    grown = forest([3, 3, 3, 3, 3, 0], [STOP, STOP, STOP, LENGTH, STOP, LENGTH])
    found, told = graded(problems(*"abc"), list("uvwxyz"), grades([1, 0, 1, 0, 1, 0]), grown, finished=finished)
    assert found.informative_P.tolist() == teaches  # the last one never was grown
    assert told.task_R.tolist() == ["sums"] * 6


def test_metrics_are_those_of_all_that_was_sampled():
    verified = Verified(refills=3)
    part = np.array([0.5, np.nan], np.float32)
    for names, rewards, columns, seconds in (
        ("a", [1, 0], {"sums/part/format": part}, 2.0),
        ("b", [1, 0], {}, 3.0),  # nobody said anything of the part
        ("c", [1, 1], {"sums/part/format": part + 0.25, "seconds": np.array([0.125, np.nan])}, 4.0),
    ):
        found, told = graded(
            problems(*names), ["", ""], grades(rewards, **columns), forest([1, 2], [1, 1]), finished=False
        )
        verified.add(told, found, {"reward/mean": 0}, rollout_s=seconds, reward_s=1.0)
    metrics = verified.metrics(by_task=True)
    assert metrics == pytest.approx(
        {
            "reward/verifier_timeouts": 3,
            "time/verifier_s": 0.125,
            "reward/sums/mean": 4 / 6,
            "reward/sums/length": 1.5,
            "reward/sums/truncated": 0.0,
            "reward/sums/part/format": 0.625,
            "rollout/refills": 2,
            "rollout/informative": 2,
            "rollout/surplus": 1,  # a step of one prompt
        }
    )
    assert (verified.rollout_s, verified.reward_s, len(verified.sampled)) == (9.0, 3.0, 3)


def test_without_refills_nothing_is_said_of_them():
    verified = Verified(refills=0)
    found, told = graded(problems("a"), ["", ""], grades([1, 0]), forest([1, 2], [1, 1]), finished=False)
    verified.add(told, found, None, rollout_s=1.0, reward_s=1.0)
    assert set(verified.metrics(by_task=False)) == {"reward/verifier_timeouts", "time/verifier_s"}
    assert verified.sampled == []
