"""PPO-clip against a scalar loop, branch by branch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.objectives.clipping import ppo_loss


def reference(logp, old, a, weight, low, high):
    r = np.exp(logp - old)
    loss = max(-a * r, -a * min(max(r, 1 - low), 1 + high))
    return weight * (min(loss, -3 * a) if a < 0 else loss)


def test_loss_equals_the_loop(make_batch):
    batch = make_batch(1, importance_RT=np.random.default_rng(2).uniform(0.5, 2, (4, 5)))
    a = batch.rows.advantage_RT
    got = ppo_loss(batch, a, clip_low=0.2, clip_high=0.28).loss_RT
    columns = [np.asarray(x, np.float64).ravel() for x in (batch.logp_RT, batch.old_logp_RT, a, batch.importance_RT)]
    expected = [reference(*row, 0.2, 0.28) for row in zip(*columns, strict=True)]
    np.testing.assert_allclose(got.ravel(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("ratio", "a", "loss", "slope", "low", "high"),
    [
        (1.1, 2.0, -2.2, -2.2, 0, 0),  # inside: d loss / d logp = -A r
        (1.5, 2.0, -2.4, 0.0, 0, 1),  # good token already up enough
        (0.5, 2.0, -1.0, -1.0, 0, 0),  # good token that went down: pulled back
        (0.5, -2.0, 1.6, 0.0, 1, 0),  # bad token already down enough
        (1.5, -2.0, 3.0, 3.0, 0, 0),  # bad token that went up: pushed back
        (5.0, -2.0, 6.0, 0.0, 0, 0),  # far up: dual clip
    ],
)
def test_every_branch_by_hand(make_batch, ratio, a, loss, slope, low, high):
    batch = make_batch(lengths=(1,), old_logp_RT=[[0.0]])

    def f(logp):
        token = ppo_loss(batch.replace(logp_RT=logp), jnp.full((1, 1), a), clip_low=0.2, clip_high=0.2)
        return token.loss_RT.sum(), token

    (value, token), grad = jax.value_and_grad(f, has_aux=True)(jnp.full((1, 1), np.log(ratio)))
    np.testing.assert_allclose([value, grad[0, 0], token.ratio_RT[0, 0]], [loss, slope, ratio], rtol=1e-5)
    assert (token.clip_low_RT[0, 0], token.clip_high_RT[0, 0]) == (low, high)


def test_equal_log_probs_give_ratio_one_exactly(make_batch):
    batch = make_batch()
    token = ppo_loss(batch.replace(old_logp_RT=batch.logp_RT), batch.rows.advantage_RT, clip_low=0.2, clip_high=0.2)
    np.testing.assert_array_equal(token.ratio_RT, 1)
