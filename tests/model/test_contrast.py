"""The shift of DiPO against KL divergences written out."""

import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.model.contrast import shift


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def kl(p, q):
    return (p * np.log(p / q)).sum()


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_it_is_what_two_kl_divergences_differ_by(alpha):
    rng = np.random.default_rng(0)
    h, mine = rng.normal(size=(4, 9)), rng.normal(size=(4, 9))
    found = shift(jnp.asarray(mine, jnp.float32), jnp.asarray(h, jnp.float32), alpha=alpha, k=3)
    for n in range(4):
        above = np.maximum(h[n] - np.sort(h[n])[-4], 0)
        memory, forgetting = softmax(h[n] + alpha * above), softmax(h[n] - alpha * above)
        pi, reference = softmax(mine[n]), softmax(h[n])
        gone = {name: kl(p, pi) - kl(p, reference) for name, p in (("memory", memory), ("forget", forgetting))}
        assert float(found[n]) == pytest.approx(gone["memory"] - gone["forget"], abs=1e-5)
        if alpha == 1:  # the likeliest become as likely as the next one
            assert np.isclose(forgetting, forgetting.max()).sum() == 4


def test_an_offset_of_all_logits_changes_nothing_and_the_reference_has_none():
    rng = np.random.default_rng(1)
    h, mine = (jnp.asarray(rng.normal(size=(3, 7)), jnp.float32) for _ in range(2))
    np.testing.assert_allclose(shift(mine + 4, h, alpha=1, k=2), shift(mine, h - 3, alpha=1, k=2), atol=1e-5)
    assert not np.any(shift(h, h, alpha=1, k=2))
