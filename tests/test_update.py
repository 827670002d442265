"""The optimizer loop: order of rows, agreement with separate steps, skipping, both conditions."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from iiblpo_jax.errors import InputError
from iiblpo_jax.minibatch import MinibatchGradient
from iiblpo_jax.objectives import make_objective
from iiblpo_jax.optimizer import make_optimizer
from iiblpo_jax.update import UpdateRows, UpdateSettings, init_state, make_update, shuffled

N, C, T = 6, 8, 5
PLAIN = make_objective("grpo", max_tokens=T)


@pytest.fixture(scope="module")
def rows(tiny_config):
    rng = np.random.default_rng(0)
    length = np.array([5, 3, 4, 2, 5, 1])
    mask = (np.arange(T) < length[:, None]).astype(np.float32)
    own = mask * (np.arange(T) >= np.array([0, 2, 0, 0, 1, 0])[:, None])
    normal = lambda: rng.normal(-2, 0.3, (N, T)).astype(np.float32)  # noqa: E731
    arrays = UpdateRows(
        tokens_NC=rng.integers(1, tiny_config.vocab_size, (N, C)).astype(np.int32),
        prompt_len_N=np.array([3, 3, 3, 2, 2, 2]),
        mask_NT=mask,
        own_mask_NT=own,
        rollout_logp_NT=normal(),
        raw_logp_NT=normal(),
        advantage_N=rng.normal(size=N).astype(np.float32),
        reward_N=np.ones(N, np.float32),
        correct_N=np.ones(N, np.float32),
        ib_score_N=np.zeros(N, np.float32),
        group_N=np.arange(N) // 3,
        length_N=length,
        trajectory_N=np.arange(N),
        parent_N=np.array([-1, 0, -1, -1, 3, -1]),
        branch_at_N=np.array([0, 2, 0, 0, 1, 0]),
    )
    return jax.tree.map(jnp.asarray, arrays)


def sgd(rate=0.5):
    return optax.sgd(rate)


def run(tiny_config, params, rows, *, objective=PLAIN, optimizer=None, key=0, **settings):
    optimizer = optimizer or sgd()
    update = make_update(UpdateSettings(**settings), objective, tiny_config, optimizer)
    state = init_state(jax.tree.map(jnp.copy, {"policy": params}), optimizer)
    return update(state, rows, jax.random.key(key))


def assert_trees_close(a, b, atol=1e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=atol * max(1.0, float(jnp.abs(y).max())))


def test_every_epoch_visits_every_row_once():
    order = np.asarray(shuffled(jax.random.key(0), 12, epochs=3, minibatches=4))
    assert order.shape == (12, 3)
    for epoch in order.reshape(3, 12):
        assert sorted(epoch) == list(range(12))
    assert (order.reshape(3, 12)[0] != order.reshape(3, 12)[1]).any()


def test_whole_groups_stay_together():
    order = np.asarray(shuffled(jax.random.key(1), 12, epochs=2, minibatches=2, unit=3))
    for minibatch in order:
        blocks = minibatch.reshape(2, 3)
        np.testing.assert_array_equal(blocks - blocks[:, :1], [[0, 1, 2]] * 2)
        assert (blocks[:, 0] % 3 == 0).all()


def test_one_step_is_one_gradient_step(tiny_config, tiny_params, rows):
    state, metrics = run(tiny_config, tiny_params, rows, microbatch=2)
    gradient = MinibatchGradient(settings=UpdateSettings(microbatch=6), objective=PLAIN, model_config=tiny_config)
    loss, grads, _ = jax.jit(gradient)({"policy": tiny_params}, rows, None, step=jnp.int32(0), key=jax.random.key(0))
    assert_trees_close(state.params, jax.tree.map(lambda w, g: w - 0.5 * g, {"policy": tiny_params}, grads))
    np.testing.assert_allclose(metrics["update/loss"], loss, atol=1e-6)
    np.testing.assert_allclose(metrics["update/grad_norm"], optax.global_norm(grads), rtol=1e-5)
    assert metrics["update/ratio_mean"] == 1.0
    assert state.step == 1


def test_several_steps_equal_separate_ones_against_the_first_policy(tiny_config, tiny_params, rows):
    """2 epochs x 3 minibatches: SGD by hand over the same order, pi_old fixed before the first step."""
    settings = UpdateSettings(epochs=2, minibatches=3, microbatch=1)
    state, metrics = run(tiny_config, tiny_params, rows, key=7, **dataclasses.asdict(settings))
    gradient = MinibatchGradient(settings=UpdateSettings(microbatch=1), objective=PLAIN, model_config=tiny_config)
    params = {"policy": tiny_params}
    old = jax.jit(gradient.log_probs)(params, rows)[0]
    order_key, _ = jax.random.split(jax.random.key(7))
    losses, step = [], jax.jit(gradient)
    for order in shuffled(order_key, N, epochs=2, minibatches=3):
        minibatch = jax.tree.map(lambda x, order=order: x[order], rows)
        loss, grads, _ = step(params, minibatch, old[order], step=jnp.int32(0), key=jax.random.key(0))
        params = jax.tree.map(lambda w, g: w - 0.5 * g, params, grads)
        losses.append(loss)
    assert_trees_close(state.params, params, atol=1e-5)
    np.testing.assert_allclose(metrics["update/loss"], np.mean(losses), atol=1e-5)
    assert metrics["update/ratio_mean"] != 1.0


def test_with_a_still_optimizer_every_ratio_is_one(tiny_config, tiny_params, rows):
    _, metrics = run(tiny_config, tiny_params, rows, optimizer=sgd(0.0), epochs=2, minibatches=2)
    np.testing.assert_allclose(metrics["update/ratio_mean"], 1.0, atol=1e-6)
    assert metrics["update/clip_low"] == metrics["update/clip_high"] == 0


def test_prefix_loss_off_counts_own_tokens_only(tiny_config, tiny_params, rows):
    off, _ = run(tiny_config, tiny_params, rows, prefix_loss=False)
    own, _ = run(tiny_config, tiny_params, rows.replace(mask_NT=rows.own_mask_NT))
    on, _ = run(tiny_config, tiny_params, rows)
    assert_trees_close(off.params, own.params)
    assert float(jnp.abs(off.params["policy"]["embed"] - on.params["policy"]["embed"]).max()) > 1e-4


def test_zero_advantages_leave_the_policy_alone(tiny_config, tiny_params, rows):
    state, metrics = run(tiny_config, tiny_params, rows.replace(advantage_N=jnp.zeros(N)))
    assert_trees_close(state.params["policy"], tiny_params, atol=0)
    assert metrics["update/grad_norm"] == 0


def test_a_bad_minibatch_is_skipped_and_counted(tiny_config, tiny_params, rows):
    """One NaN advantage spoils one of three minibatches: parameters equal those of the two others."""
    bad = rows.replace(advantage_N=rows.advantage_N.at[2].set(jnp.nan))
    optimizer = optax.adam(1e-2)
    state, metrics = run(tiny_config, tiny_params, bad, optimizer=optimizer, minibatches=3, key=3)
    assert metrics["update/skipped"] == 1
    assert all(np.isfinite(value) for value in metrics.values())
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state.params))
    assert state.opt_state[0].count == 2

    order = np.asarray(shuffled(jax.random.split(jax.random.key(3))[0], N, epochs=1, minibatches=3))
    gradient = MinibatchGradient(settings=UpdateSettings(microbatch=2), objective=PLAIN, model_config=tiny_config)
    params = {"policy": tiny_params}
    opt_state, old = optimizer.init(params), jax.jit(gradient.log_probs)(params, rows)[0]
    step = jax.jit(gradient)
    for rows_n in (o for o in order if 2 not in o):
        minibatch = jax.tree.map(lambda x, o=rows_n: x[o], rows)
        _, grads, _ = step(params, minibatch, old[rows_n], step=jnp.int32(0), key=jax.random.key(0))
        changes, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, changes)
    # Adam divides by |g|: coordinates with no gradient amplify rounding, so compare on the scale of its step.
    assert_trees_close(state.params, params, atol=2e-4)


def test_an_all_bad_update_changes_nothing(tiny_config, tiny_params, rows):
    state, metrics = run(tiny_config, tiny_params, rows.replace(advantage_N=jnp.full(N, jnp.inf)))
    assert_trees_close(state.params["policy"], tiny_params, atol=0)
    assert metrics["update/skipped"] == 1


def test_the_real_optimizer_raises_good_and_lowers_bad_tokens(tiny_config, tiny_params, rows):
    """Ten updates on advantages +-1 move the log-probs apart."""
    optim = types.SimpleNamespace(
        lr=3e-3, psa_lr=1e-3, b1=0.9, b2=0.99, weight_decay=0.01, clip_norm=1.0, schedule="constant", warmup=2
    )
    sign = jnp.array([1.0, -1, 1, -1, 1, -1])
    rows = rows.replace(advantage_N=sign)
    optimizer = make_optimizer(optim, total_steps=10)
    update = make_update(UpdateSettings(minibatches=1), PLAIN, tiny_config, optimizer)
    state = init_state(jax.tree.map(jnp.copy, {"policy": tiny_params}), optimizer)
    gradient = MinibatchGradient(settings=UpdateSettings(microbatch=6), objective=PLAIN, model_config=tiny_config)
    mean_logp = lambda params: (gradient.log_probs(params, rows)[0] * rows.mask_NT).sum(1) / rows.mask_NT.sum(1)  # noqa: E731
    before = mean_logp(state.params)
    for i in range(10):
        state, _ = update(state, rows, jax.random.key(i))
    assert ((mean_logp(state.params) - before) * sign > 0.05).all()
    assert state.step == 10


@pytest.mark.parametrize(
    ("settings", "groups", "words"),
    [
        ({"minibatches": 4}, False, "update.minibatches=4 does not divide 6 trajectories"),
        ({"minibatches": 3, "group_size": 3}, True, "update.minibatches=3 does not divide 2 prompts"),
        ({"minibatches": 2, "microbatch": 2}, False, "update.microbatch=2 does not divide the 3 rows"),
    ],
)
def test_uneven_splits_are_refused(settings, groups, words):
    with pytest.raises(InputError, match=words):
        UpdateSettings(**settings).check_rows(6, whole_groups=groups)


def test_settings_from_config():
    section = types.SimpleNamespace
    config = section(
        rollout=section(temperature=0.9),
        update=section(minibatches=4, epochs=2, microbatch=8, importance_cap=0.0),
        latent=section(condition="conditioned"),
        branch=section(prefix_loss=False),
    )
    assert UpdateSettings.from_config(config, group_size=5) == UpdateSettings(
        temperature=0.9,
        minibatches=4,
        epochs=2,
        microbatch=8,
        condition="conditioned",
        importance_cap=0.0,
        prefix_loss=False,
        group_size=5,
    )
    config.latent.condition = "both"
    with pytest.raises(InputError, match=r"latent\.condition='both'.*marginal, conditioned"):
        UpdateSettings.from_config(config, group_size=5)
