"""RLOO: its first-step gradient is leave-one-out REINFORCE."""

import jax
import jax.numpy as jnp
import numpy as np

from iiblpo_jax.objectives import advantages, make_objective


def test_first_step_gradient_is_leave_one_out_reinforce(make_batch):
    batch = make_batch(2, lengths=(3, 1, 2), group_R=[0, 0, 0])
    objective, reward = make_objective("rloo", max_tokens=10), np.float32([2.0, 0.5, -1.0])
    rows = batch.rows.replace(reward_R=jnp.asarray(reward))
    batch = batch.replace(rows=rows.replace(advantage_R=advantages(objective, rows)), old_logp_RT=batch.logp_RT)

    def reinforce(logp):
        total = 0.0
        for i in range(3):
            others = [reward[j] for j in range(3) if j != i]
            total -= (reward[i] - sum(others) / 2) * (logp[i] * batch.rows.mask_RT[i]).sum() / 3
        return total

    got = jax.grad(lambda logp: objective.loss(batch.replace(logp_RT=logp), objective.weights(batch))[0])(batch.logp_RT)
    np.testing.assert_allclose(got, jax.grad(reinforce)(batch.logp_RT), rtol=1e-5)
