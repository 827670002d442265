"""Ranking, filter and self-reward: hand-worked groups and a plain Python filter."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iiblpo_jax.bottleneck import first_of_its_kind, likelihood_score, select, standardise
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.derived import keep_count

G = 6
jitted_select = jax.jit(select, static_argnames=("rule", "keep", "keep_contrast"))


def run(score, correct, valid, *, rule="score", keep=3, keep_contrast=True, seed=0):
    arrays = np.array([score], np.float32), np.array([correct], bool), np.array([valid], bool)
    key = jax.random.key(seed)
    return jitted_select(*arrays, rule=rule, keep=keep, keep_contrast=keep_contrast, key=key, reward_PG=arrays[1])


def python_filter(score, correct, valid, keep, contrast):
    """The filter as a person would write it: sort, slice, swap."""
    ranked = sorted((i for i in range(G) if valid[i]), key=lambda i: (-score[i], i))
    kept, rest = ranked[:keep], ranked[keep:]
    if contrast and len(kept) > 0 and keep > 1:
        missing = {bool(correct[i]) for i in ranked} - {bool(correct[i]) for i in kept}
        if missing:
            newcomer = next(i for i in rest if correct[i] in missing)
            kept = [*kept[:-1], newcomer]
    return kept


def test_standardise_by_hand():
    x = standardise(np.array([[1.0, 3.0, 100.0], [2.0, 2.0, 2.0]]), np.array([[True, True, False], [True] * 3]))
    np.testing.assert_allclose(x, [[-1, 1, 0], [0, 0, 0]], atol=2e-4)  # std of (1, 3) is 1


def test_score_by_hand():
    ones = np.ones((1, 2), bool)
    answer, prompt, length = np.array([[0.0, 2.0]]), np.array([[5.0, 1.0]]), np.array([[2.0, 6.0]])
    score = likelihood_score(answer, prompt, length, ones, beta=3.0)
    np.testing.assert_allclose(score, [[-3 - 1, 3 + 1]], atol=2e-3)
    # mean length 4: the cost adds 8 * 2/4 = 4 and 8 * 6/4 = 12 to I(q;r): (9, 13), so its sign turns round.
    score = likelihood_score(answer, prompt, length, ones, beta=3.0, length_cost=8.0)
    np.testing.assert_allclose(score, [[-3 + 1, 3 - 1]], atol=2e-3)


def test_noise_in_the_last_digits_leaves_equal_trajectories_tied():
    rng = np.random.default_rng(1)

    def twin(x):
        return np.repeat(x, 2, axis=1).astype(np.float32)

    answer, prompt, length = (twin(rng.normal(size=(40, 3))) for _ in range(3))
    noisy = answer + rng.choice([-1e-7, 0, 1e-7], answer.shape).astype(np.float32)
    score = np.asarray(likelihood_score(noisy, prompt, length, np.ones((40, 6), bool), beta=1.0))
    assert (score[:, ::2] == score[:, 1::2]).mean() > 0.99


def test_score_is_free_of_scale():
    rng = np.random.default_rng(0)
    answer, prompt, length = rng.normal(size=(3, 4, G)).astype(np.float32)
    valid = np.ones((4, G), bool)
    plain = likelihood_score(answer, prompt, length, valid, beta=1.0)
    scaled = likelihood_score(50 * answer + 7, 20 * prompt - 3, length, valid, beta=1.0)
    np.testing.assert_allclose(plain, scaled, atol=2e-3)


scores = st.lists(st.integers(-4, 4), min_size=G, max_size=G)
flags = st.lists(st.booleans(), min_size=G, max_size=G)


@settings(max_examples=200, deadline=None)
@given(score=scores, correct=flags, valid=flags, keep=st.integers(1, G), contrast=st.booleans())
def test_filter_equals_plain_python(score, correct, valid, keep, contrast):
    selection = run(score, correct, valid, keep=keep, keep_contrast=contrast)
    expected = python_filter(score, correct, valid, keep, contrast)
    kept = np.asarray(selection.kept_PG[0])
    assert set(np.flatnonzero(kept)) == set(expected)
    assert selection.keep_PN.shape == (1, keep)
    assert np.asarray(selection.valid_PN[0]).sum() == len(expected)
    order = [score[i] for i in np.asarray(selection.keep_PN[0])[np.asarray(selection.valid_PN[0])]]
    assert order == sorted(order, reverse=True)


@settings(max_examples=100, deadline=None)
@given(score=scores, correct=flags, keep=st.integers(2, G), seed=st.integers(0, 99))
def test_random_filter_is_blind_to_the_score(score, correct, keep, seed):
    valid = [True] * G
    one = run(score, correct, valid, rule="random", keep=keep, seed=seed)
    other = run([-s for s in score], correct, valid, rule="random", keep=keep, seed=seed)
    assert np.array_equal(one.kept_PG, other.kept_PG)
    assert int(one.kept_PG.sum()) == keep
    kept_classes = {correct[i] for i in np.flatnonzero(one.kept_PG[0])}
    assert kept_classes == set(correct)


def test_random_filter_keeps_every_trajectory_equally_often():
    counts = sum(
        np.asarray(run(range(G), [0] * G, [1] * G, rule="random", keep=2, seed=s).kept_PG[0], int) for s in range(600)
    )
    # Binomial(600, 1/3): mean 200, standard deviation 11.5
    assert np.all(np.abs(counts - 200) < 50)


def test_none_keeps_all_in_order_of_score():
    selection = run([1, 5, 3, 2, 4, 0], [1, 0, 0, 0, 0, 0], [1] * G, rule="none")
    assert selection.keep_PN.tolist() == [[1, 4, 2, 3, 0, 5]]
    assert not selection.rescued_P[0]


def test_contrast_swaps_the_best_of_the_missing_class_for_the_worst_kept():
    selection = run([6, 5, 4, 3, 2, 1], [1, 1, 1, 1, 0, 0], [1] * G)
    assert selection.keep_PN.tolist() == [[0, 1, 4]]
    assert selection.rescued_P.tolist() == [True]
    assert run([6, 5, 4, 3, 2, 1], [1, 1, 1, 1, 0, 0], [1] * G, keep_contrast=False).keep_PN.tolist() == [[0, 1, 2]]


def test_a_score_that_is_not_finite_is_never_kept():
    selection = run([np.nan, np.inf, 2, 1, 0, -1], [1, 1, 0, 1, 0, 0], [1] * G)
    assert selection.keep_PN.tolist() == [[2, 3, 4]]


def test_keep_count():
    assert [keep_count(k, 8) for k in (0, 1, 8)] == [4, 1, 8]
    assert keep_count(0, 1) == 1
    for bad in (-1, 9):
        with pytest.raises(InputError, match=r"ib\.keep"):
            keep_count(bad, 8)


def run_contrast(score, reward, valid, *, keep):
    arrays = np.array([score], np.float32), np.array([reward], np.float32), np.array([valid], bool)
    score_PG, reward_PG, valid_PG = arrays
    return jitted_select(
        score_PG,
        reward_PG > 0.99,
        valid_PG,
        rule="contrast",
        keep=keep,
        keep_contrast=False,
        key=jax.random.key(0),
        reward_PG=reward_PG,
    )


@settings(max_examples=200, deadline=None)
@given(score=scores, correct=flags, valid=flags, keep=st.integers(1, G))
def test_contrast_takes_both_kinds_in_turns(score, correct, valid, keep):
    """As a person would: two ranked piles, one from each in turns, right ones first; the rest from what is left."""
    selection = run_contrast(score, correct, valid, keep=keep)
    ranked = sorted((i for i in range(G) if valid[i]), key=lambda i: (-score[i], i))
    piles = [[i for i in ranked if correct[i] == kind] for kind in (1, 0)]
    expected = []
    if all(piles):
        turns = [pile[i] for i in range(G) for pile in piles if i < len(pile)]
        expected = turns[:keep]
    assert set(np.flatnonzero(selection.kept_PG[0])) == set(expected)


@settings(max_examples=100, deadline=None)
@given(score=scores, correct=flags, keep=st.integers(2, G))
def test_no_subset_of_that_size_has_a_larger_reward_variance(score, correct, keep):
    kept = np.asarray(run_contrast(score, correct, [True] * G, keep=keep).kept_PG[0])
    if 0 < sum(correct) < G:
        variances = [np.var(np.array(correct)[list(subset)]) for subset in itertools.combinations(range(G), keep)]
        assert np.var(np.array(correct)[kept]) == pytest.approx(max(variances))


def test_contrast_of_graded_rewards_is_about_the_mean():
    # Mean .5: trajectories 1 and 3 are above, 0, 2, 4 and 5 are not.
    selection = run_contrast([0, 1, 2, 3, 4, 5], [0.5, 0.9, 0.4, 0.8, 0.3, 0.1], [1] * G, keep=3)
    assert np.flatnonzero(selection.kept_PG[0]).tolist() == [1, 3, 5]
    assert not run_contrast([0, 1, 2, 3, 4, 5], [0.3] * G, [1] * G, keep=3).kept_PG.any()


def test_only_the_first_of_equal_trajectories_is_news():
    """Equal tokens up to the length; a prefix of another is another; what is not valid hides nobody."""
    tokens = np.array([[[1, 2, 0], [1, 2, 0], [1, 2, 3], [1, 2, 0], [4, 0, 0]], [[5, 0, 0]] * 5])
    length = np.array([[2, 2, 3, 3, 1], [1] * 5])
    valid = np.array([[1, 1, 1, 1, 1], [0, 1, 1, 0, 1]], bool)
    found = first_of_its_kind(*map(jnp.asarray, (tokens, length, valid)))
    assert found.tolist() == [[True, False, True, True, True], [True, True, False, False, False]]
