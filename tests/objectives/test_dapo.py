"""DAPO = GRPO with a higher upper bound."""

import numpy as np

from iiblpo_jax.objectives import make_objective


def loss(objective, batch):
    return objective.loss(batch, objective.weights(batch))[0]


def test_only_the_upper_bound_differs_from_grpo(make_batch):
    dapo, grpo = (make_objective(name, max_tokens=10) for name in ("dapo", "grpo"))
    one = make_batch(lengths=(1,), logp_RT=[[np.log(1.5)]], old_logp_RT=[[0.0]], advantage_R=[[2.0]])
    np.testing.assert_allclose([loss(dapo, one), loss(grpo, one)], [-2 * 1.28, -2 * 1.2], rtol=1e-6)
    low = make_batch(lengths=(1,), logp_RT=[[np.log(0.5)]], old_logp_RT=[[0.0]], advantage_R=[[-2.0]])
    np.testing.assert_allclose([loss(dapo, low), loss(grpo, low)], [2 * 0.8, 2 * 0.8], rtol=1e-6)


def test_with_grpos_bound_it_is_grpo(make_batch):
    batch = make_batch(3)
    dapo = make_objective("dapo", max_tokens=10, overrides={"clip_high": 0.2})
    assert loss(dapo, batch) == loss(make_objective("grpo", max_tokens=10), batch)
