"""The distillation term in the gradient of a minibatch: against dense models, and however the minibatch is split."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from iiblpo_jax.model.decoder import Decoder, bind, hidden_states, logits, output_weights, params_of
from iiblpo_jax.model.logprobs import likeliest, response_positions
from iiblpo_jax.objectives import Distillation, make_objective, with_distillation
from iiblpo_jax.objectives.rows import Rows
from iiblpo_jax.update.epochs import make_update
from iiblpo_jax.update.gradient import MinibatchGradient
from iiblpo_jax.update.optimizer import Schedule
from iiblpo_jax.update.settings import UpdateSettings
from iiblpo_jax.update.state import init_state

N, S, T, K, TEMPERATURE = 4, 3, 5, 4, 0.9
REWARD = np.array([1.0, 0.0, 1.0, 0.5], np.float32)
TERM = Distillation(coef=0.7, beta=0.3, min_reward=0.5, top_k=0, teacher="model")
GRPO, DISCO = (make_objective(name, max_tokens=T) for name in ("grpo", "disco"))


@pytest.fixture(scope="module")
def teacher(tiny_config):
    """Another width, and a vocabulary padded by two."""
    config = dataclasses.replace(tiny_config, d_model=8, vocab_size=tiny_config.vocab_size + 2)
    params = params_of(Decoder(config, rngs=nnx.Rngs(7)))
    return bind(config, {**params, "embed": params["embed"] * 20.0})


@pytest.fixture(scope="module")
def rows(tiny_config, teacher) -> Rows:
    """Two prompts with two trajectories each, those of the first one alike in their first three tokens."""
    rng = np.random.default_rng(0)
    prompt_len, length = np.array([3, 3, 2, 2]), np.array([5, 4, 5, 3])
    tokens = rng.integers(1, tiny_config.vocab_size, (N, S + T))
    tokens[1, :6], tokens[3, :2] = tokens[0, :6], tokens[2, :2]
    tokens *= np.arange(S + T) < (prompt_len + length)[:, None]
    mask = (np.arange(T) < length[:, None]).astype(np.float32)
    zeros = np.zeros(N, np.int32)
    rows = Rows(
        tokens_RC=tokens,
        prompt_len_R=prompt_len,
        length_R=length,
        mask_RT=mask,
        own_mask_RT=mask,
        raw_logp_RT=np.zeros((N, T), np.float32),
        reward_R=REWARD,
        correct_R=(REWARD >= 1).astype(np.float32),
        group_R=np.arange(N) // 2,
        trajectory_R=np.arange(N),
        parent_R=zeros - 1,
        branch_at_R=zeros,
        keep_R=np.ones(N, bool),
        ib_score_R=np.zeros(N, np.float32),
        advantage_R=np.array([1.0, -1, 0.5, -0.5], np.float32),
    )
    rows = jax.tree.map(jnp.asarray, rows)
    at_NT = response_positions(rows.prompt_len_R, T)
    state_NTD = jnp.take_along_axis(hidden_states(teacher, rows.tokens_RC), at_NT[..., None], axis=1, mode="clip")
    w_VD, never = output_weights(teacher)[: tiny_config.vocab_size], (0,)
    token_NTK, logp_NTK = likeliest(state_NTD, w_VD, K, temperature=TEMPERATURE, never=never)
    extras = {"teacher_state": state_NTD, "teacher_token": token_NTK, "teacher_logp": logp_NTK}
    return rows.replace(extras=extras)


def distilled(objective=GRPO, **changes):
    return with_distillation(objective, dataclasses.replace(TERM, **changes))


def compute(config, params, rows, objective, teacher_VD, **settings):
    settings = UpdateSettings(temperature=TEMPERATURE, never_ids=(0,), group_size=2, importance_cap=0, **settings)
    gradient = jax.jit(MinibatchGradient(settings=settings, objective=objective, model_config=config))
    given = {"step": jnp.int32(0), "key": jax.random.key(0), "teacher_VD": teacher_VD}
    return gradient({"policy": params}, rows, rows.raw_logp_RT - 2.0, **given)


@pytest.fixture(scope="module")
def heads(tiny_config, teacher):
    return output_weights(teacher)[: tiny_config.vocab_size]


@pytest.fixture(scope="module")
def whole(tiny_config, tiny_params, rows, heads):
    """All rows at once: (loss, gradients, totals)."""
    return compute(tiny_config, tiny_params, rows, distilled(), heads)


def test_the_term_is_that_of_whole_distributions(tiny_config, tiny_params, rows, teacher, heads, whole):
    """What distillation adds to loss and gradient, by dense softmaxes and autodiff over them."""
    counted_RT = np.asarray(rows.mask_RT) * (REWARD >= 0.5)[:, None]
    at_NT = np.asarray(response_positions(rows.prompt_len_R, T))

    def log_probs(model):
        logits_NTV = jnp.stack([row[at] for row, at in zip(logits(model, rows.tokens_RC), at_NT, strict=True)])
        return jax.nn.log_softmax(logits_NTV[..., 1 : tiny_config.vocab_size] / TEMPERATURE)

    def term(params):
        q, p = log_probs(bind(tiny_config, params)), log_probs(teacher)
        m = jnp.log(0.3 * jnp.exp(p) + 0.7 * jnp.exp(q))
        jsd_RT = (0.3 * jnp.exp(p) * (p - m) + 0.7 * jnp.exp(q) * (q - m)).sum(-1)
        return 0.7 * (counted_RT * jsd_RT).sum() / counted_RT.sum(), jsd_RT

    (value, jsd_RT), gradient = jax.jit(jax.value_and_grad(term, has_aux=True))(tiny_params)
    plain = compute(tiny_config, tiny_params, rows, GRPO, None)
    np.testing.assert_allclose(whole[0] - plain[0], value, rtol=1e-4)
    added = jax.tree.map(jnp.subtract, whole[1]["policy"], plain[1]["policy"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), added, gradient)
    totals = whole[2]
    assert totals["distilled"] == counted_RT.sum() and "distilled" not in plain[2]
    assert totals["taught"] == plain[2]["taught"] + counted_RT.sum()
    np.testing.assert_allclose(totals["divergence"], (counted_RT * jsd_RT).sum(), rtol=1e-5)


def assert_same(a, b):
    np.testing.assert_allclose(a[0], b[0], rtol=2e-6, atol=1e-6)
    for x, y in zip(jax.tree.leaves(a[1]), jax.tree.leaves(b[1]), strict=True):
        np.testing.assert_allclose(x, y, atol=3e-6 * max(1.0, float(jnp.abs(y).max())))


@pytest.mark.parametrize("settings", [{"microbatch": 1}, {"pack_tokens": 8}])
def test_pieces_and_packing_change_nothing(tiny_config, tiny_params, rows, heads, whole, settings):
    assert_same(compute(tiny_config, tiny_params, rows, distilled(), heads, **settings), whole)


def test_a_method_that_couples_rows_distils_the_same_by_likeliest_tokens(tiny_config, tiny_params, rows, whole):
    """Gradient caching over bins against one piece."""
    objective = distilled(DISCO, top_k=K)
    found = [compute(tiny_config, tiny_params, rows, objective, None, pack_tokens=p) for p in (0, 8)]
    assert_same(found[1], found[0])
    assert 0 < float(found[0][2]["divergence"]) < float(whole[2]["divergence"])  # coarser


def test_a_coefficient_of_nothing_is_the_method_itself():
    assert with_distillation(GRPO, dataclasses.replace(TERM, coef=0.0)) is GRPO


def test_a_group_without_spread_learns_from_its_teacher(tiny_config, tiny_params, rows):
    """And the average follows the policy: decay times itself and the rest of the new one."""
    settings = UpdateSettings(never_ids=(0,), group_size=2, average_decay=0.75)
    rows = rows.replace(
        advantage_R=jnp.zeros(N), extras={"teacher_state": jnp.ones((N, T, tiny_config.d_model), jnp.float32)}
    )
    gradient = MinibatchGradient(settings=settings, objective=distilled(teacher="average"), model_config=tiny_config)
    update = make_update(gradient, optax.sgd(0.1), Schedule(peak=0.1))
    for reward_R, moves in ((REWARD, True), (0 * REWARD, False)):
        state = init_state({"policy": tiny_params}, optax.sgd(0.1), averages=True)
        begin = jax.tree.map(lambda x: x + 1.0, state.average)
        state = jax.tree.map(jnp.copy, state.replace(average=begin))
        after, found = update(state, rows.replace(reward_R=jnp.asarray(reward_R)), jax.random.key(0))
        assert after.moved == moves and found["update/distilled"] == pytest.approx(13 / 17 if moves else 0)
        assert (found["update/divergence"] > 0) == moves == (found["update/grad_norm"] > 0)
        jax.tree.map(
            lambda a, b, w: np.testing.assert_allclose(a, 0.75 * b + 0.25 * w, atol=1e-6),
            after.average["policy"],
            begin["policy"],
            after.params["policy"],
        )
