"""GRPO against a plain loop over trajectories and tokens."""

import numpy as np
import pytest

from iiblpo_jax.objectives import advantages, make_objective


def test_advantage_by_hand(make_rows):
    """Rewards 1 1 0: mean 2/3, sample variance 1/3."""
    a = advantages(make_objective("grpo", max_tokens=10), make_rows([1, 1, 0], np.zeros(3)))
    np.testing.assert_allclose(a, np.array([1 / 3, 1 / 3, -2 / 3]) / 3**-0.5, rtol=1e-5)


@pytest.mark.parametrize("aggregate", ["token-mean", "seq-mean-token-mean"])
def test_loss_equals_a_loop(make_batch, aggregate):
    batch = make_batch(5)
    objective = make_objective("grpo", max_tokens=10, overrides={"aggregate": aggregate})
    lengths = np.asarray(batch.rows.mask_RT).sum(1).astype(int)
    total = 0.0
    for i, length in enumerate(lengths):
        for t in range(length):
            r = np.exp(float(batch.logp_RT[i, t]) - float(batch.old_logp_RT[i, t]))
            a = float(batch.rows.advantage_RT[i, t])
            weight = 1 / lengths.sum() if aggregate == "token-mean" else 1 / (length * len(lengths))
            total += weight * -min(a * r, a * np.clip(r, 0.8, 1.2)) if a > 0 or r < 3 else weight * -3 * a
    loss, _ = objective.loss(batch, objective.weights(batch))
    np.testing.assert_allclose(loss, total, rtol=1e-5)
