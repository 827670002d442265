"""AUC and correlation against scipy and against counting pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from iiblpo_jax.bottleneck import bottleneck_metrics, select
from iiblpo_jax.bottleneck.diagnostics import auc_within_prompts, correlation_within_prompts


def counted_auc(score, correct, valid):
    wins, pairs = 0.0, 0
    for s, c, v in zip(score, correct, valid, strict=True):
        for i in range(len(s)):
            for j in range(len(s)):
                if v[i] and v[j] and c[i] and not c[j]:
                    pairs += 1
                    wins += 1.0 if s[i] > s[j] else 0.5 if s[i] == s[j] else 0.0
    return wins / pairs if pairs else 0.5


def test_auc_counts_pairs_of_the_same_prompt():
    rng = np.random.default_rng(0)
    for _ in range(20):
        score = rng.integers(0, 4, size=(3, 7)).astype(np.float32)
        correct, valid = rng.random((3, 7)) < 0.4, rng.random((3, 7)) < 0.8
        assert np.isclose(auc_within_prompts(score, correct, valid), counted_auc(score, correct, valid), atol=1e-6)


def test_auc_of_one_prompt_is_the_mann_whitney_statistic():
    rng = np.random.default_rng(1)
    score, correct = rng.normal(size=20).astype(np.float32), rng.random(20) < 0.5
    u = scipy.stats.mannwhitneyu(score[correct], score[~correct]).statistic
    auc = auc_within_prompts(score[None], correct[None], np.ones((1, 20), bool))
    assert np.isclose(auc, u / (correct.sum() * (~correct).sum()), atol=1e-6)


def test_auc_without_a_pair_is_one_half():
    assert auc_within_prompts(jnp.ones((2, 3)), jnp.array([[True] * 3, [False] * 3]), jnp.ones((2, 3), bool)) == 0.5


def test_correlation_is_pearson_after_centring_each_prompt():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(4, 6)) + 10 * np.arange(4)[:, None]  # between-prompt offsets that must not count
    y = rng.normal(size=(4, 6)) - 10 * np.arange(4)[:, None]
    centred = [v - v.mean(axis=1, keepdims=True) for v in (x, y)]
    expected = scipy.stats.pearsonr(*(v.ravel() for v in centred)).statistic
    ours = correlation_within_prompts(jnp.asarray(x), jnp.asarray(y), jnp.ones((4, 6), bool))
    assert np.isclose(ours, expected, atol=1e-5)
    assert correlation_within_prompts(jnp.asarray(x), jnp.ones((4, 6)), jnp.ones((4, 6), bool)) == 0


def test_metrics_by_hand():
    score = jnp.array([[2.0, 1.0, 0.0, -1.0]])
    correct, valid = jnp.array([[True, True, True, False]]), jnp.ones((1, 4), bool)
    selection = select(
        score, correct, valid, rule="score", keep=2, keep_contrast=True, key=jax.random.key(0), reward_PG=correct
    )
    terms = {"ib_answer": jnp.array([4.0, 2.0, 1.0, 1.0]), "ib_prompt": jnp.array([1.0, 1.0, 1.0, 3.0])}
    lengths = jnp.array([[1, 2, 3, 4]])
    metrics = bottleneck_metrics(score, selection, correct, lengths, valid, terms=terms)
    assert {name: float(value) for name, value in metrics.items()} == {
        "ib/answer": 2.0,
        "ib/prompt": 1.5,
        "ib/score": 0.5,
        "ib/kept_score": 0.5,  # the swap keeps scores 2 and -1
        "ib/kept_correct": 0.5,
        "ib/auc_correct": 1.0,
        "ib/corr_length": -1.0,
        "ib/contrast_rescued": 1.0,
    }
