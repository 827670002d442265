"""Gradients do not depend on how a minibatch is split or padded; weights and metrics from their definitions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax import masked
from iiblpo_jax.logprobs import response_logprobs
from iiblpo_jax.minibatch import MinibatchGradient, metrics
from iiblpo_jax.model.decoder import bind
from iiblpo_jax.model.psa import bind_psa, latent_inputs
from iiblpo_jax.objectives import make_objective, with_auxiliary
from iiblpo_jax.update import UpdateRows, UpdateSettings

N, S, T, TEMPERATURE = 8, 4, 6, 0.9
PLAIN = make_objective("grpo", max_tokens=T)
FULL = with_auxiliary(PLAIN, entropy_coef=0.1, kl_coef=0.2)


def make_rows(tiny_config, *, seed=0, pad=0) -> UpdateRows:
    """Eight trajectories of two prompts, three of them branches with z on; `pad` adds empty columns."""
    rng = np.random.default_rng(seed)
    prompt_len, length = rng.integers(2, S + 1, N), rng.integers(3, T + 1, N)
    prompt_len[:4], prompt_len[4:] = prompt_len[0], prompt_len[4]
    tokens = np.zeros((N, S + T + pad), np.int32)
    for n in range(N):
        used = prompt_len[n] + length[n]
        tokens[n, :used] = rng.integers(1, tiny_config.vocab_size, used)
    branch_at = np.array([0, 0, 2, 1, 0, 0, 2, 0])
    t = np.arange(T + pad)
    mask = (t < length[:, None]).astype(np.float32)
    wide = lambda scale: np.pad(rng.normal(-2, scale, (N, T)), ((0, 0), (0, pad))).astype(np.float32)  # noqa: E731
    rollout, raw, ref = wide(0.5), wide(0.5), wide(0.5)
    arrays = UpdateRows(
        tokens_NC=tokens,
        prompt_len_N=prompt_len,
        mask_NT=mask,
        own_mask_NT=mask * (t >= branch_at[:, None]),
        rollout_logp_NT=rollout,
        raw_logp_NT=raw,
        ref_logp_NT=ref,
        advantage_N=rng.normal(size=N).astype(np.float32),
        reward_N=rng.normal(size=N).astype(np.float32),
        correct_N=rng.integers(0, 2, N).astype(np.float32),
        ib_score_N=rng.normal(size=N).astype(np.float32),
        group_N=np.arange(N) // 4,
        length_N=length,
        trajectory_N=np.arange(N),
        parent_N=np.where(branch_at > 0, 0, -1),
        branch_at_N=branch_at,
    )
    rows = jax.tree.map(jnp.asarray, arrays)
    z_NJZ = jnp.asarray(rng.normal(size=(N, 1, 4)), jnp.float32)
    latent = latent_inputs(
        z_NJZ, rows.branch_at_N[:, None], rows.prompt_len_N, S + T + pad, half_life=4.0, strength=1.0
    )
    return rows.replace(latent=latent)


@pytest.fixture(scope="module")
def params(tiny_params, tiny_psa_params):
    return {"policy": tiny_params, "psa": tiny_psa_params}


def compute(tiny_config, params, rows, objective, *, old=None, **settings):
    gradient = MinibatchGradient(
        settings=UpdateSettings(temperature=TEMPERATURE, **settings), objective=objective, model_config=tiny_config
    )
    return jax.jit(gradient)(params, rows, old, step=jnp.int32(0), key=jax.random.key(5))


def old_logp(rows):
    """Near enough to the behaviour that some ratios clip and others do not."""
    return rows.rollout_logp_NT + 0.1


def assert_same(a, b, atol=1e-6):
    np.testing.assert_allclose(a[0], b[0], atol=atol)
    for x, y in zip(jax.tree.leaves(a[1]), jax.tree.leaves(b[1]), strict=True):
        np.testing.assert_allclose(x, y, atol=atol * max(1.0, float(jnp.abs(y).max())))


def score_disco_b(batch):
    """DisCO-b, L-ratio: per prompt, mean score of right answers minus mean score of wrong ones."""
    score_R = masked.mean(jnp.exp(batch.logp_RT - batch.old_logp_RT), batch.mask_RT, axis=1)
    gap_R = masked.group_mean(score_R, batch.group_R, batch.correct_R)
    gap_R -= masked.group_mean(score_R, batch.group_R, 1 - batch.correct_R)
    return -gap_R.mean()


def uncertain_fifth(batch):
    """80/20: the fifth of all tokens with the highest current entropy."""
    bound = jnp.nanquantile(jnp.where(batch.mask_RT > 0, batch.entropy_RT, jnp.nan), 0.8)
    return batch.mask_RT * (batch.entropy_RT >= bound)


def half_at_random(batch):
    """Clip-Cov's kind of random selection."""
    return batch.mask_RT * jax.random.bernoulli(batch.key, shape=batch.mask_RT.shape)


METHODS = {
    **{name: make_objective(name, max_tokens=T) for name in ("dr_grpo", "rloo", "gspo", "entropy_adv")},
    "grpo with A*H and KL": FULL,
    "a group loss": dataclasses.replace(FULL, group_loss=score_disco_b, needs_groups=True),
    "an entropy quantile": dataclasses.replace(FULL, token_mask=uncertain_fifth, whole_minibatch=True),
    "a random mask": dataclasses.replace(FULL, token_mask=half_at_random, whole_minibatch=True),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("condition", ["marginal", "conditioned"])
def test_any_split_gives_the_same_loss_and_gradient(tiny_config, params, name, condition):
    if condition == "conditioned" and name not in ("gspo", "a group loss"):
        pytest.skip("one plain and one coupled method exercise the latent path")
    rows = make_rows(tiny_config)
    run = lambda size: compute(  # noqa: E731
        tiny_config, params, rows, METHODS[name], old=old_logp(rows), microbatch=size, condition=condition
    )
    whole = run(0)
    assert optax_norm(whole[1]) > 1e-3
    for size in (1, 4):
        assert_same(run(size), whole)


def optax_norm(tree):
    return float(sum(jnp.sum(x * x) for x in jax.tree.leaves(tree))) ** 0.5


@pytest.mark.parametrize("name", ["grpo with A*H and KL", "dr_grpo", "gspo"])
def test_padding_columns_change_nothing(tiny_config, params, name):
    results = []
    for pad in (0, 5):
        rows = make_rows(tiny_config, pad=pad)
        results.append(compute(tiny_config, params, rows, METHODS[name], old=old_logp(rows), microbatch=4))
    assert_same(*results)


def test_loss_is_the_formula(tiny_config, params):
    """GRPO + A*H + k3, marginal, token by token in numpy."""
    rows = make_rows(tiny_config)
    loss, _, _ = compute(tiny_config, params, rows, FULL, old=old_logp(rows), microbatch=2)
    logp, entropy = plain_log_probs(tiny_config, params, rows)
    old, mu, ref, mask = (np.asarray(x) for x in (old_logp(rows), rows.rollout_logp_NT, rows.ref_logp_NT, rows.mask_NT))
    total = 0.0
    for n in range(N):
        for t in np.flatnonzero(mask[n]):
            a, r = float(rows.advantage_N[n]), np.exp(logp[n, t] - old[n, t])
            branch_at = int(rows.branch_at_N[n])
            weight = min(np.exp(old[n, t] - mu[n, t]), 2.0) if branch_at and t >= branch_at else 1.0
            surrogate = max(-a * r, -a * np.clip(r, 0.8, 1.2))
            total += weight * (min(surrogate, -3 * a) if a < 0 else surrogate) - 0.1 * a * entropy[n, t]
            d = ref[n, t] - logp[n, t]
            total += 0.2 * (np.exp(d) - d - 1)
    np.testing.assert_allclose(loss, total / mask.sum(), rtol=2e-5)


def plain_log_probs(tiny_config, params, rows):
    model = bind(tiny_config, params["policy"])
    t = rows.mask_NT.shape[1]
    return [
        np.asarray(x) for x in response_logprobs(model, rows.tokens_NC, rows.prompt_len_N, t, temperature=TEMPERATURE)
    ]


def test_conditioned_scores_with_z(tiny_config, params):
    """Log-probs recorded with z on are reproduced (ratio 1), not without z; and the path of z gets gradients."""
    rows = make_rows(tiny_config)
    model, psa = bind(tiny_config, params["policy"]), bind_psa(params["psa"], tiny_config)
    with_z, _ = response_logprobs(
        model, rows.tokens_NC, rows.prompt_len_N, T, temperature=TEMPERATURE, latent=rows.latent, psa=psa
    )
    rows = rows.replace(raw_logp_NT=with_z)
    _, grads, totals = compute(tiny_config, params, rows, PLAIN, condition="conditioned", microbatch=2)
    got = metrics({**totals, "steps": 1, "loss": 0, "grad_norm": 0, "skipped": 0})
    assert got["update/ratio_mean"] == 1.0
    assert got["latent/weight_ess"] == 1.0
    assert got["mismatch/logp_max"] < 1e-5
    assert all(jnp.abs(g).max() > 1e-6 for g in grads["psa"].values())
    assert np.abs(with_z - plain_log_probs(tiny_config, params, rows)[0]).max() > 0.1

    _, grads, totals = compute(tiny_config, params, rows, PLAIN, condition="marginal", microbatch=2)
    got = metrics({**totals, "steps": 1, "loss": 0, "grad_norm": 0, "skipped": 0})
    assert got["mismatch/logp_max"] < 1e-5  # tokens sampled with z are not compared
    assert optax_norm(grads["psa"]) == 0


@pytest.mark.parametrize("cap", [2.0, 0.0])
def test_metrics_from_their_definitions(tiny_config, params, cap):
    rows = make_rows(tiny_config)
    _, _, totals = compute(tiny_config, params, rows, PLAIN, microbatch=2, importance_cap=cap)
    got = metrics({**totals, "steps": 2, "loss": 3.0, "grad_norm": 5.0, "skipped": 1})
    logp, entropy = plain_log_probs(tiny_config, params, rows)
    mask = np.asarray(rows.mask_NT) > 0
    branch_at = np.asarray(rows.branch_at_N)[:, None]
    on = mask & (branch_at > 0) & (np.arange(T) >= branch_at)
    weight = np.minimum(np.exp(logp - np.asarray(rows.rollout_logp_NT)), cap)[on] if cap else np.ones(on.sum())
    gap = np.abs(logp - np.asarray(rows.raw_logp_NT))[mask & ~on]
    d = (np.asarray(rows.ref_logp_NT) - logp)[mask]
    expected = {
        "update/loss": 1.5,
        "update/grad_norm": 2.5,
        "update/ratio_mean": 1.0,
        "update/clip_low": 0.0,
        "update/clip_high": 0.0,
        "update/kl_ref": (np.exp(d) - d - 1).mean(),
        "update/entropy": entropy[mask].mean(),
        "update/skipped": 1,
        "mismatch/logp_mean": gap.mean(),
        "mismatch/logp_max": gap.max(),
        "latent/weight_ess": weight.sum() ** 2 / (on.sum() * (weight**2).sum()),
    }
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, err_msg=name)


def test_without_a_latent_every_weight_is_one(tiny_config, params):
    rows = make_rows(tiny_config).replace(latent=None)
    loss, _, totals = compute(tiny_config, params, rows, PLAIN, microbatch=4)
    mask = np.asarray(rows.mask_NT)
    expected = -(mask * np.asarray(rows.advantage_N)[:, None]).sum() / mask.sum()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert totals["weight_tokens"] == 0
    assert metrics({**totals, "steps": 1, "loss": 0, "grad_norm": 0, "skipped": 0})["latent/weight_ess"] == 1


def test_token_level_advantages(tiny_config, params):
    """[N,T] advantages that repeat [N] ones give the same loss."""
    rows = make_rows(tiny_config)
    spread = rows.replace(advantage_N=jnp.broadcast_to(rows.advantage_N[:, None], (N, T)))
    assert_same(*(compute(tiny_config, params, r, PLAIN, microbatch=4) for r in (rows, spread)))
