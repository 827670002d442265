"""Schedules, decay and the two learning rates, from the definition of Adam's first step."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.update.optimizer import Schedule, decay_mask, make_optimizer

OPTIM = {"lr": 1e-2, "psa_lr": 1e-1, "b1": 0.9, "b2": 0.99, "weight_decay": 0.0, "clip_norm": 1.0}


def one_step(gradients, **overrides):
    params = {
        "policy": {"embed": jnp.full((2, 2), 3.0), "final_norm": jnp.ones(2)},
        "psa": {"gain": jnp.full((2,), 2.0)},
    }
    optimizer = make_optimizer(types.SimpleNamespace(**OPTIM | overrides))
    changes, _ = optimizer.update(gradients(params), optimizer.init(params), params)
    return changes


def test_the_first_step_is_the_sign_times_each_parts_rate():
    changes = one_step(lambda params: jax.tree.map(jnp.ones_like, params))
    np.testing.assert_allclose(changes["policy"]["embed"], -1e-2, rtol=1e-4)
    np.testing.assert_allclose(changes["psa"]["gain"], -1e-1, rtol=1e-4)


def test_decay_spares_norms_and_psa():
    changes = one_step(lambda params: jax.tree.map(jnp.zeros_like, params), weight_decay=0.5)
    np.testing.assert_allclose(changes["policy"]["embed"], -1e-2 * 0.5 * 3, rtol=1e-5)
    np.testing.assert_array_equal(changes["policy"]["final_norm"], 0)
    np.testing.assert_array_equal(changes["psa"]["gain"], 0)


def test_clipping_is_by_global_norm():
    """Adam's moments after (30, 40), whose norm 50 becomes 1: m = 0.1 g, v = 0.01 g^2 with g = (0.6, 0.8)."""
    params = {"policy": {"w": jnp.zeros(2)}}
    optimizer = make_optimizer(types.SimpleNamespace(**OPTIM | {"lr": 1.0}))
    _, state = optimizer.update({"policy": {"w": jnp.array([30.0, 40.0])}}, optimizer.init(params), params)
    moments = [x for x in jax.tree.leaves(state) if x.shape == (2,)]
    np.testing.assert_allclose(moments[0], [0.06, 0.08], rtol=1e-5)
    np.testing.assert_allclose(moments[1], [0.0036, 0.0064], rtol=1e-5)


def test_schedules_by_hand():
    constant = Schedule(peak=2.0, warmup=4)
    np.testing.assert_allclose([constant.rate(i) for i in (0, 1, 3, 4, 11)], [0.5, 1.0, 2.0, 2.0, 2.0])
    cosine = Schedule(peak=2.0, kind="cosine", warmup=4, decay_steps=12)
    np.testing.assert_allclose([cosine.rate(i) for i in (0, 4, 8, 12, 20)], [0.5, 2.0, 1.0, 0.0, 0.0], atol=1e-6)
    assert constant.share(4) == cosine.share(4) == Schedule(peak=2.0).share(0) == 1  # exactly: the peak is the peak


def test_the_state_holds_no_schedule():
    """What it counts would depend on how many optimizer steps a rollout is cut into. Adam's own counts stay."""
    state = make_optimizer(types.SimpleNamespace(**OPTIM)).init(
        {"policy": {"w": jnp.ones(2)}, "psa": {"k": jnp.ones(2)}}
    )
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert sum(".count" in name for name in names) == 2


def test_a_policy_without_psa_is_enough():
    params = {"policy": {"w": jnp.ones(2)}}
    optimizer = make_optimizer(types.SimpleNamespace(**OPTIM))
    changes, _ = optimizer.update(params, optimizer.init(params), params)
    np.testing.assert_allclose(optax.apply_updates(params, changes)["policy"]["w"], 0.99, rtol=1e-5)


def test_decay_mask_of_a_decoder(tiny_params):
    flags = decay_mask(tiny_params)
    spared = {
        k
        for k, decays in {**flags["layers"], "embed": flags["embed"], "final_norm": flags["final_norm"]}.items()
        if not decays
    }
    assert spared == {"attn_norm", "mlp_norm", "qk_norm", "final_norm"}


def test_unknown_schedule():
    with pytest.raises(InputError, match=r"optim\.schedule = 'linear'.*constant, cosine"):
        Schedule(peak=1.0, kind="linear")
