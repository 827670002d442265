"""The optimizer loop: order of rows, agreement with separate steps, skipping, both conditions."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from iiblpo_jax.common import masked
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.objectives import make_objective
from iiblpo_jax.objectives.novelty import learnt, make_novelty
from iiblpo_jax.objectives.rows import Rows
from iiblpo_jax.update import epochs as update
from iiblpo_jax.update.epochs import make_update, shuffled
from iiblpo_jax.update.gradient import MinibatchGradient
from iiblpo_jax.update.optimizer import Schedule, make_optimizer
from iiblpo_jax.update.settings import UpdateSettings
from iiblpo_jax.update.state import init_state

N, C, T = 6, 8, 5
PLAIN = make_objective("grpo", max_tokens=T)


@pytest.fixture(scope="module")
def rows(tiny_config):
    rng = np.random.default_rng(0)
    length = np.array([5, 3, 4, 2, 5, 1])
    mask = (np.arange(T) < length[:, None]).astype(np.float32)
    own = mask * (np.arange(T) >= np.array([0, 2, 0, 0, 1, 0])[:, None])

    def normal():
        return rng.normal(-2, 0.3, (N, T)).astype(np.float32)

    arrays = Rows(
        tokens_RC=rng.integers(1, tiny_config.vocab_size, (N, C)).astype(np.int32),
        prompt_len_R=np.array([3, 3, 3, 2, 2, 2]),
        mask_RT=mask,
        own_mask_RT=own,
        raw_logp_RT=normal(),
        advantage_R=rng.normal(size=N).astype(np.float32),
        reward_R=np.ones(N, np.float32),
        correct_R=np.ones(N, np.float32),
        keep_R=np.ones(N, bool),
        ib_score_R=np.zeros(N, np.float32),
        group_R=np.arange(N) // 3,
        length_R=length,
        trajectory_R=np.arange(N),
        parent_R=np.array([-1, 0, -1, -1, 3, -1]),
        branch_at_R=np.array([0, 2, 0, 0, 1, 0]),
    )
    return jax.tree.map(jnp.asarray, arrays)


SGD = optax.sgd(0.5, momentum=0.9)
SCHEDULE = Schedule(peak=3.0, kind="cosine", decay_steps=4)  # begins at its peak
THREE_BY_TWO = UpdateSettings(epochs=2, minibatches=3, microbatch=1)


@functools.cache
def compiled_update(settings, config, optimizer):
    return make_update(MinibatchGradient(settings=settings, objective=PLAIN, model_config=config), optimizer, SCHEDULE)


@functools.cache
def compiled_gradient(config):
    return jax.jit(MinibatchGradient(settings=UpdateSettings(microbatch=2), objective=PLAIN, model_config=config))


@functools.cache
def compiled_log_probs(config):
    gradient = MinibatchGradient(settings=UpdateSettings(microbatch=2), objective=PLAIN, model_config=config)
    return jax.jit(lambda params, rows: gradient.log_probs(params, rows)[0])


def run(config, params, rows, settings, *, optimizer=SGD, key=0):
    state = init_state(jax.tree.map(jnp.copy, {"policy": params}), optimizer)
    return compiled_update(settings, config, optimizer)(state, rows, jax.random.key(key))


def by_hand(config, params, rows, order_In):
    """The optimizer steps on minibatches `order_In`, one call each, pi_old fixed before the first: (params, losses)."""
    params = {"policy": params}
    old_RT, opt_state, losses = compiled_log_probs(config)(params, rows), SGD.init(params), []
    for order_n in order_In:
        minibatch = jax.tree.map(lambda x, order_n=order_n: x[order_n], rows)
        loss, gradients, _ = compiled_gradient(config)(
            params, minibatch, old_RT[order_n], step=jnp.int32(0), key=jax.random.key(0)
        )
        changes, opt_state = SGD.update(gradients, opt_state)
        params = optax.apply_updates(params, changes)
        losses.append(loss)
    return params, losses


def order_of(key):
    return np.asarray(shuffled(jax.random.split(jax.random.key(key))[0], N, epochs=2, minibatches=3))


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
    state, metrics = run(tiny_config, tiny_params, rows, UpdateSettings(microbatch=2))
    loss, gradients, _ = compiled_gradient(tiny_config)(
        {"policy": tiny_params}, rows, None, step=jnp.int32(0), key=jax.random.key(0)
    )
    assert_trees_close(state.params, jax.tree.map(lambda w, g: w - 0.5 * g, {"policy": tiny_params}, gradients))
    np.testing.assert_allclose(metrics["update/loss"], loss, atol=1e-6)
    np.testing.assert_allclose(metrics["update/grad_norm"], optax.tree.norm(gradients), rtol=1e-5)
    assert metrics["update/ratio_mean"] == 1.0
    assert state.step == state.moved == 1


def test_what_is_trained_on_is_no_longer_new(tiny_config, tiny_params, rows):
    """Once a rollout, however it is cut into steps, and a row of which no token counts is not seen."""
    rows = rows.replace(mask_RT=rows.mask_RT.at[1].set(0.0))
    novelty = make_novelty(jax.random.key(4), vocab_size=tiny_config.vocab_size, width=C)
    expected = learnt(novelty, rows.tokens_RC, rows.prompt_len_R + rows.length_R, jnp.arange(N) != 1)
    state = init_state(jax.tree.map(jnp.copy, {"policy": tiny_params}), SGD, novelty=jax.tree.map(jnp.copy, novelty))
    plain, _ = run(tiny_config, tiny_params, rows, THREE_BY_TWO)
    after, _ = compiled_update(THREE_BY_TWO, tiny_config, SGD)(state, rows, jax.random.key(0))
    assert_trees_close(after.novelty, expected)
    assert optax.tree.norm(optax.tree.sub(after.novelty.predictor, novelty.predictor)) > 1e-3
    assert_trees_close(after.params, plain.params)
    assert plain.novelty is None


@pytest.mark.parametrize("settings", [UpdateSettings(microbatch=2), THREE_BY_TWO], ids=["one step", "six steps"])
def test_the_schedule_goes_by_rollouts(tiny_config, tiny_params, rows, settings):
    """After two of four the rate is half of its peak, in one step a rollout or six. With SGD so is the change."""
    whole = init_state(jax.tree.map(jnp.copy, {"policy": tiny_params}), SGD)
    half = jax.tree.map(jnp.copy, whole.replace(step=jnp.int32(3), moved=jnp.int32(2)))
    update, key = compiled_update(settings, tiny_config, SGD), jax.random.key(0)
    moved, metrics = update(half, rows, key)
    assert metrics["optim/lr"] == pytest.approx(1.5) and (moved.step, moved.moved) == (4, 3)
    last, at_the_end = update(jax.tree.map(jnp.copy, moved).replace(moved=jnp.int32(4)), rows, key)
    assert at_the_end["optim/lr"] == pytest.approx(0, abs=1e-6)
    assert_trees_close(last.params, moved.params)
    if settings.minibatches == 1:
        full, metrics = update(whole, rows, key)
        assert metrics["optim/lr"] == 3
        change = jax.tree.map(lambda w, v: w + 0.5 * (v - w), {"policy": tiny_params}, full.params)
        assert_trees_close(moved.params, change)


def test_several_steps_equal_separate_ones_against_the_first_policy(tiny_config, tiny_params, rows):
    state, metrics = run(tiny_config, tiny_params, rows, THREE_BY_TWO, key=7)
    params, losses = by_hand(tiny_config, tiny_params, rows, order_of(7))
    assert_trees_close(state.params, params, atol=5e-5)  # six steps of a large rate amplify rounding
    np.testing.assert_allclose(metrics["update/loss"], np.mean(losses), atol=1e-5)
    assert abs(metrics["update/ratio_mean"] - 1) > 1e-3


@pytest.mark.parametrize("nothing", ["advantage_R", "mask_RT"])
def test_with_nothing_to_learn_from_nothing_moves(tiny_config, tiny_params, rows, nothing):
    """Not even by the momentum of the update before. Every ratio is 1: the first policy is the last one too."""
    before, _ = run(tiny_config, tiny_params, rows, THREE_BY_TWO)
    kept = jax.tree.map(jnp.copy, before)
    rows = rows.replace(**{nothing: jnp.zeros_like(getattr(rows, nothing))})
    state, metrics = compiled_update(THREE_BY_TWO, tiny_config, SGD)(before, rows, jax.random.key(1))
    assert_trees_close((state.params, state.opt_state), (kept.params, kept.opt_state), atol=0)
    assert (state.step, state.moved) == (2, 1)
    assert (metrics["update/empty"], metrics["update/skipped"]) == (6, 0)
    assert metrics["update/grad_norm"] == metrics["update/clip_low"] == metrics["update/clip_high"] == 0
    np.testing.assert_allclose(metrics["update/ratio_mean"], 1.0 if nothing == "advantage_R" else 0.0, atol=1e-6)


def test_minibatches_with_nothing_to_learn_from_are_left_out(tiny_config, tiny_params, rows):
    """Of weights and momentum; their loss is 0."""
    order_In, taught = order_of(7), np.array([1, 5])
    rest = [order for order in order_In if set(order) & set(taught)]
    assert 2 <= len(rest) < 6
    advantage_R = jnp.where(jnp.isin(jnp.arange(N), taught), rows.advantage_R, 0.0)
    rows = rows.replace(advantage_R=advantage_R)
    state, metrics = run(tiny_config, tiny_params, rows, THREE_BY_TWO, key=7)
    params, losses = by_hand(tiny_config, tiny_params, rows, rest)
    assert metrics["update/empty"] == 6 - len(rest)
    np.testing.assert_allclose(metrics["update/loss"], np.sum(losses) / 6, atol=1e-5)
    assert_trees_close(state.params, params, atol=5e-5)


def test_minibatches_without_tokens_do_not_water_down_the_means(tiny_config, tiny_params, rows):
    """One row counts: two of the six minibatches have it, and loss and gradient norm are means over these two."""
    alone = rows.replace(mask_RT=rows.mask_RT.at[jnp.arange(N) != 4].set(0.0))
    _, metrics = run(tiny_config, tiny_params, alone, THREE_BY_TWO, key=7)
    _, losses = by_hand(tiny_config, tiny_params, alone, [order for order in order_of(7) if 4 in order])
    assert len(losses) == 2
    np.testing.assert_allclose(metrics["update/loss"], np.mean(losses), atol=1e-5)
    first = compiled_gradient(tiny_config)(
        {"policy": tiny_params}, alone, None, step=jnp.int32(0), key=jax.random.key(0)
    )
    # At least that of the first of them is in the mean of two; over six it would be a sixth.
    assert metrics["update/grad_norm"] > 0.4 * optax.tree.norm(first[1])


def test_a_bad_minibatch_is_skipped_and_counted(tiny_config, tiny_params, rows):
    """A NaN advantage spoils one of three minibatches in both epochs: the others alone make parameters and momentum."""
    bad = rows.replace(advantage_R=rows.advantage_R.at[2].set(jnp.nan))
    state, metrics = run(tiny_config, tiny_params, bad, THREE_BY_TWO, key=3)
    params, losses = by_hand(tiny_config, tiny_params, rows, [order for order in order_of(3) if 2 not in order])
    assert metrics["update/skipped"] == 2
    np.testing.assert_allclose(metrics["update/loss"], np.mean(losses), atol=1e-5)
    assert all(np.isfinite(value) for value in metrics.values())
    assert_trees_close(state.params, params, atol=1e-5)


def test_an_all_bad_update_changes_nothing(tiny_config, tiny_params, rows):
    bad = rows.replace(advantage_R=jnp.full(N, jnp.inf))
    state, metrics = run(tiny_config, tiny_params, bad, UpdateSettings(microbatch=2))
    assert_trees_close(state.params["policy"], tiny_params, atol=0)
    assert (metrics["update/skipped"], metrics["update/empty"]) == (1, 0)
    assert (state.step, state.moved) == (1, 0)


def test_prefix_loss_off_counts_own_tokens_only(tiny_config, tiny_params, rows):
    off, _ = run(tiny_config, tiny_params, rows, UpdateSettings(microbatch=2, prefix_loss=False))
    own, _ = run(tiny_config, tiny_params, rows.replace(mask_RT=rows.own_mask_RT), UpdateSettings(microbatch=2))
    on, _ = run(tiny_config, tiny_params, rows, UpdateSettings(microbatch=2))
    assert_trees_close(off.params, own.params)
    assert float(jnp.abs(off.params["policy"]["embed"] - on.params["policy"]["embed"]).max()) > 1e-4


def test_the_real_optimizer_raises_good_and_lowers_bad_tokens(tiny_config, tiny_params, rows):
    """Ten updates on advantages +-1 move the log-probs apart."""
    optim = types.SimpleNamespace(lr=3e-3, psa_lr=1e-3, b1=0.9, b2=0.99, weight_decay=0.01, clip_norm=1.0)
    sign_R = jnp.array([1.0, -1, 1, -1, 1, -1])
    rows = rows.replace(advantage_R=sign_R)
    optimizer = make_optimizer(optim)
    gradient = MinibatchGradient(settings=UpdateSettings(), objective=PLAIN, model_config=tiny_config)
    update = make_update(gradient, optimizer, Schedule(peak=optim.lr, warmup=2))
    state = init_state(jax.tree.map(jnp.copy, {"policy": tiny_params}), optimizer)

    def mean_logp(params):
        return masked.mean(compiled_log_probs(tiny_config)(params, rows), rows.mask_RT, axis=1)

    before = mean_logp(state.params)
    for i in range(10):
        state, _ = update(state, rows, jax.random.key(i))
    assert ((mean_logp(state.params) - before) * sign_R > 0.05).all()
    assert state.step == 10


@pytest.mark.parametrize(
    ("settings", "groups", "words"),
    [
        (
            {"minibatches": 4},
            False,
            "update.minibatches = 4 does not divide the 6 trajectories of an update; use one of 1, 2, 3, 6",
        ),
        (
            {"minibatches": 3, "group_size": 3},
            True,
            "update.minibatches = 3 does not divide the 2 prompts of an update; use one of 1, 2",
        ),
        (
            {"minibatches": 2, "microbatch": 2},
            False,
            "update.microbatch = 2 does not divide the 3 trajectories of a minibatch; use one of 1, 3, or 0",
        ),
    ],
)
def test_uneven_splits_are_refused(settings, groups, words):
    with pytest.raises(InputError, match=words):
        UpdateSettings(**settings).check_rows(6, whole_groups=groups)


@pytest.mark.parametrize("taught", [0, 5])
def test_a_step_is_empty_where_no_token_has_an_advantage(taught):
    """Whatever else has a gradient, such as the KL; and no other is: one of clipped tokens has its momentum."""
    params, optimizer = {"policy": jnp.ones(3)}, optax.sgd(0.5, momentum=0.5)
    totals = {"ratio": jnp.float32(2), "tokens": jnp.float32(2), "taught": jnp.float32(taught)}
    slope = 0.0 if taught else 1.0

    def gradient(*_, **__):
        return (jnp.float32(1), jax.tree.map(lambda x: slope * jnp.ones_like(x), params), totals)

    state = init_state(params, optimizer)
    state = state.replace(opt_state=jax.tree.map(jnp.ones_like, state.opt_state))
    after, found = update.optimizer_step(gradient, optimizer, 1.0, state, None, None, None)
    np.testing.assert_array_equal(after.params["policy"], 0.75 if taught else 1.0)
    np.testing.assert_array_equal(jax.tree.leaves(after.opt_state)[0], 0.5 if taught else 1.0)
    assert (found["moved"], found["empty"], found["skipped"]) == ((1, 0, 0) if taught else (0, 1, 0))
    assert (found["tokens"], found["steps"], found["loss"]) == (2, 1, 1)


@pytest.mark.parametrize(("ratio", "skipped"), [(1.0, 0), (999.0, 0), (1001.0, 1), (jnp.inf, 1), (jnp.nan, 1)])
def test_a_step_whose_ratio_explodes_is_skipped(ratio, skipped):
    """Loss and gradient are fine, and the ratios of its two tokens have the mean `ratio`."""
    params = {"policy": jnp.ones(3)}
    totals = {"ratio": jnp.float32(2 * ratio), "tokens": jnp.float32(2), "taught": jnp.float32(2)}

    def gradient(*_, **__):
        return (jnp.float32(1), jax.tree.map(jnp.ones_like, params), totals)

    sgd = optax.sgd(0.5)
    state, found = update.optimizer_step(gradient, sgd, 1.0, init_state(params, sgd), None, None, None)
    np.testing.assert_array_equal(state.params["policy"], 1.0 if skipped else 0.5)
    assert found["skipped"] == skipped == 1 - found["moved"] and found["ratio"] == (0 if skipped else 2 * ratio)
