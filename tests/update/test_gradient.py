"""Gradients do not depend on how a minibatch is split or padded; weights and metrics from their definitions."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.common.trees import tree_shape
from iiblpo_jax.model.decoder import bind, hidden_states, project
from iiblpo_jax.model.logprobs import response_logprobs
from iiblpo_jax.model.steering.psa import bind_psa, latent_inputs, steer_rows
from iiblpo_jax.objectives import make_objective, with_auxiliary
from iiblpo_jax.objectives.forking_tokens import highest_entropy
from iiblpo_jax.objectives.rows import Rows
from iiblpo_jax.update.gradient import MinibatchGradient
from iiblpo_jax.update.measures import metrics
from iiblpo_jax.update.settings import UpdateSettings

N, S, T, TEMPERATURE, PAD = 8, 4, 6, 0.9, 5
BRANCH_AT = np.array([0, 0, 2, 1, 0, 0, 2, 0])
PLAIN = make_objective("grpo", max_tokens=T)
FULL = with_auxiliary(PLAIN, entropy_coef=0.1, kl_coef=0.2)


@pytest.fixture(scope="module")
def params(tiny_params, tiny_psa_params):
    return {"policy": tiny_params, "psa": tiny_psa_params}


@pytest.fixture(scope="module")
def truth(tiny_config, params):
    """rows -> (logp, entropy) as numpy: `plain` without z, `with_z` with it."""
    model, psa = bind(tiny_config, params["policy"]), bind_psa(params["psa"], tiny_config)

    @functools.partial(jax.jit, static_argnames="inject")
    def log_probs(rows, inject):
        injected = {"inject": steer_rows(psa, tiny_config.n_layers, rows.latent)} if inject else {}
        return response_logprobs(model, rows.tokens_RC, rows.prompt_len_R, T, temperature=TEMPERATURE, **injected)

    return lambda rows, inject=False: [np.asarray(x) for x in log_probs(rows, inject)]


@pytest.fixture(scope="module")
def rows(tiny_config, truth) -> Rows:
    """Eight trajectories of two prompts, three of them branches with z on, recorded by slightly different policies."""
    rng = np.random.default_rng(0)
    prompt_len, length = np.repeat([3, 2], 4), rng.integers(3, T + 1, N)
    tokens = rng.integers(1, tiny_config.vocab_size, (N, S + T))
    tokens *= np.arange(S + T) < (prompt_len + length)[:, None]
    mask = (np.arange(T) < length[:, None]).astype(np.float32)
    rows = Rows(
        tokens_RC=tokens,
        prompt_len_R=prompt_len,
        mask_RT=mask,
        own_mask_RT=mask * (np.arange(T) >= BRANCH_AT[:, None]),
        raw_logp_RT=np.zeros((N, T)),
        advantage_R=rng.normal(size=N),
        reward_R=rng.normal(size=N),
        correct_R=np.array([1.0, 0, 0, 1, 0, 1, 1, 1]),
        keep_R=np.ones(N, bool),
        ib_score_R=rng.normal(size=N),
        group_R=np.arange(N) // 4,
        length_R=length,
        trajectory_R=np.arange(N),
        parent_R=np.where(BRANCH_AT > 0, 0, -1),
        branch_at_R=BRANCH_AT,
    )
    rows = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32 if x.dtype.kind == "f" else jnp.int32), rows)
    logp = truth(rows)[0]

    def near(scale):
        return jnp.asarray(logp + rng.normal(0, scale, (N, T)), jnp.float32)

    rows = rows.replace(raw_logp_RT=near(0.5), ref_logp_RT=near(0.3))
    z_RJZ = jnp.asarray(rng.normal(size=(N, 1, 4)), jnp.float32)
    latent = latent_inputs(z_RJZ, rows.branch_at_R[:, None], rows.prompt_len_R, S + T, half_life=4.0, strength=1.0)
    return rows.replace(latent=latent)


@functools.cache
def compiled(config, objective, settings):
    return jax.jit(MinibatchGradient(settings=settings, objective=objective, model_config=config))


def compute(config, params, rows, objective, *, old=None, group_size=4, **settings):
    settings = UpdateSettings(temperature=TEMPERATURE, group_size=group_size, **settings)
    gradient = compiled(config, objective, settings)
    return gradient(params, rows, old, step=jnp.int32(0), key=jax.random.key(5))


def old_logp(rows):
    """Some ratios to it clip and others do not."""
    return rows.raw_logp_RT + 0.1


def assert_same(a, b):
    np.testing.assert_allclose(a[0], b[0], rtol=2e-6, atol=1e-6)
    for x, y in zip(jax.tree.leaves(a[1]), jax.tree.leaves(b[1]), strict=True):
        np.testing.assert_allclose(x, y, atol=3e-6 * max(1.0, float(jnp.abs(y).max())))


def norm(tree):
    return float(sum(jnp.sum(x * x) for x in jax.tree.leaves(tree))) ** 0.5


def one_step(totals, **sums):
    return metrics({**totals, "steps": 1, "loss": 0, "grad_norm": 0, "skipped": 0, "empty": 0} | sums)


CLIP_COV = make_objective("clip_cov", max_tokens=T, overrides={"share": 0.2, "cov_low": 0.0})
DISCO = make_objective("disco", max_tokens=T, overrides={"beta": 1.0})

CASES = {
    "GRPO with A*H and KL": (FULL, "marginal", (1, 4)),
    "GSPO, KL off the reward, conditioned": (
        with_auxiliary(make_objective("gspo", max_tokens=T), kl_coef=0.2, kl_form="k1"),
        "conditioned",
        (2,),
    ),
    "DisCO, a loss over groups": (DISCO, "conditioned", (2,)),
    # An entropy quantile of the minibatch, a random choice in it, and the auxiliary terms.
    "80/20 and Clip-Cov": (
        dataclasses.replace(
            CLIP_COV, token_mask=functools.partial(highest_entropy, fraction=0.5), aux_losses=FULL.aux_losses
        ),
        "marginal",
        (2,),
    ),
    "SPINE, a band on the entropy of forking tokens": (
        make_objective("spine", max_tokens=T, overrides={"fraction": 0.5, "band_coef": 0.5, "low": 2.5, "high": 2.6}),
        "marginal",
        (2,),
    ),
}


TOP = 3
DPPO = make_objective("dppo", max_tokens=T, overrides={"top_k": TOP, "delta_low": 0.2, "delta_high": 0.2})


@pytest.mark.parametrize("condition, padded", [("marginal", {}), ("conditioned", {"microbatch": 2})])
def test_log_probs_of_the_tokens_that_the_rollout_noted(tiny_config, params, rows, condition, padded):
    """Padded, packed, in pieces: those of the whole softmax. Every row has tokens of its own, on shared nodes too."""
    rows = relatives(rows, None)
    noted = jax.random.randint(jax.random.key(3), (N, T, TOP), 0, tiny_config.vocab_size)
    rows = rows.replace(extras={"top_token": noted})
    model, inject = bind(tiny_config, params["policy"]), None
    if condition == "conditioned":
        inject = steer_rows(bind_psa(params["psa"], tiny_config), tiny_config.n_layers, rows.latent)
    at_RT = rows.prompt_len_R[:, None] - 1 + np.arange(T)
    h_RCD = hidden_states(model, rows.tokens_RC, inject=inject)
    every_RTV = jax.nn.log_softmax(project(model, jnp.take_along_axis(h_RCD, at_RT[..., None], 1)) / TEMPERATURE)
    expected = np.asarray(jnp.take_along_axis(every_RTV, noted, axis=-1))
    on = np.asarray(rows.mask_RT) > 0
    for pieces in (padded, {"pack_tokens": 24, "group_size": 4}):
        settings = UpdateSettings(temperature=TEMPERATURE, condition=condition, **pieces)
        gradient = MinibatchGradient(settings=settings, objective=DPPO, model_config=tiny_config)
        _, _, found = jax.jit(lambda params, g=gradient: g.log_probs(params, rows, others=True))(params)
        np.testing.assert_allclose(np.asarray(found)[on], expected[on], atol=2e-5)


@pytest.mark.parametrize("pieces", [{"microbatch": 2}, {"pack_tokens": 24}])
def test_a_mask_over_the_likeliest_tokens_does_not_depend_on_the_split(tiny_config, params, rows, truth, pieces):
    rows = relatives(rows, truth)
    noted = jax.random.randint(jax.random.key(3), (N, T, TOP), 0, tiny_config.vocab_size)
    logp = jnp.log(jax.random.dirichlet(jax.random.key(4), jnp.ones(TOP + 1), (N, T)))[..., :TOP]
    rows = rows.replace(extras={"top_token": noted, "top_logp": logp})

    def run(**pieces):
        return compute(tiny_config, params, rows, DPPO, old=old_logp(rows), **pieces)

    whole = run()
    assert norm(whole[1]) > 1e-4 and whole[2]["clip_low"] + whole[2]["clip_high"] > 0
    assert_same(run(**pieces), whole)


def relatives(rows, truth):
    """The same trajectories, but of one prompt each four begin alike, and branches inherit what their parent said."""
    tokens = np.array(rows.tokens_RC)
    for n in range(N):
        first = n - n % 4
        alike = int(rows.prompt_len_R[n]) + max(int(BRANCH_AT[n]), n % 3)
        tokens[n, :alike] = tokens[first, :alike]
    tokens[N - 1] = tokens[N - 2]  # a trajectory that was drawn twice
    rows = rows.replace(tokens_RC=jnp.asarray(tokens), length_R=rows.length_R.at[N - 1].set(rows.length_R[N - 2]))
    return rows.replace(mask_RT=rows.mask_RT.at[N - 1].set(rows.mask_RT[N - 2]))


@pytest.mark.parametrize("name, tokens", [*((name, 24) for name in CASES), ("GRPO with A*H and KL", S + T)])
def test_packed_bins_give_the_same_loss_and_gradient(tiny_config, params, rows, truth, name, tokens):
    objective, condition, _ = CASES[name]
    rows = relatives(rows, truth)

    def run(**pieces):
        return compute(tiny_config, params, rows, objective, old=old_logp(rows), condition=condition, **pieces)

    plain, packed = run(microbatch=0), run(pack_tokens=tokens)
    assert_same(packed, plain)
    assert plain[2].pop("positions") == N * (S + T)
    # What relatives have in common is fed once: fewer nodes than the inputs of all rows.
    assert packed[2].pop("nodes") < plain[2].pop("nodes") == (rows.prompt_len_R + rows.length_R - 1).sum()
    for key, value in plain[2].items():
        np.testing.assert_allclose(packed[2][key], value, rtol=1e-5, atol=1e-5, err_msg=key)


TWO_ON_TWO = tree_shape(2, 2)
DEEP_AT = np.array([0, 2, 4, 3, 1, 3, 1])  # the last one is a resample from where its parent began, without z


def deep_rows(tiny_config) -> Rows:
    """Two trees of two branches on two, one a prompt: branches inherit what their path said, each with its own z."""
    rng, n, j = np.random.default_rng(6), 14, 7
    at_R, prompt_len, length = np.tile(DEEP_AT, 2), np.repeat([3, 2], j), np.tile([6, 5, 6, 6, 4, 6, 5], 2)
    tokens = rng.integers(1, tiny_config.vocab_size, (n, S + T))
    z_RZ, z_RJZ, at_RJ = rng.normal(size=(n, 4)), np.zeros((n, 2, 4)), np.zeros((n, 2), int)
    for i in range(n):
        first, parent = i - i % j, i - i % j + TWO_ON_TWO.parent_J[i % j]
        if i == first:
            continue
        begins = prompt_len[i] + at_R[i]
        tokens[i, :begins] = tokens[parent, :begins]
        z_RJZ[i, 1], at_RJ[i, 1] = z_RZ[i], -at_R[i] if i % j == 6 else at_R[i]
        if parent != first:
            z_RJZ[i, 0], at_RJ[i, 0] = z_RZ[parent], at_R[parent]
    mask = (np.arange(T) < length[:, None]).astype(np.float32)
    rows = Rows(
        tokens_RC=tokens * (np.arange(S + T) < (prompt_len + length)[:, None]),
        prompt_len_R=prompt_len,
        mask_RT=mask,
        own_mask_RT=mask * (np.arange(T) >= at_R[:, None]),
        raw_logp_RT=rng.uniform(-4, -2, (n, T)),
        ref_logp_RT=rng.uniform(-4, -2, (n, T)),
        advantage_R=rng.normal(size=(n, T)),
        reward_R=rng.normal(size=n),
        correct_R=rng.integers(0, 2, n).astype(float),
        keep_R=np.ones(n, bool),
        ib_score_R=rng.normal(size=n),
        group_R=np.arange(n) // j,
        length_R=length,
        trajectory_R=np.arange(n),
        parent_R=np.arange(n) - np.arange(n) % j + np.tile(TWO_ON_TWO.parent_J, 2),
        branch_at_R=at_R,
    )
    rows = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32 if x.dtype.kind == "f" else jnp.int32), rows)
    z_RJZ = jnp.asarray(z_RJZ, jnp.float32)
    return rows.replace(
        latent=latent_inputs(z_RJZ, jnp.asarray(at_RJ), rows.prompt_len_R, S + T, half_life=4.0, strength=1.0)
    )


@pytest.mark.parametrize("condition", ["marginal", "conditioned"])
def test_packed_bins_of_branches_on_branches(tiny_config, params, truth, condition):
    """Log-probs (in the mismatch to what is recorded), loss, gradient and metrics are those of padded rows."""
    rows = deep_rows(tiny_config)
    on_RT = np.asarray(rows.z_on_RT)[:7]
    begins = [T, 2, 2, 2, 1, 1, T]  # of each trajectory's first z, whoever it came from; own tokens of 6 have none
    np.testing.assert_array_equal(on_RT, np.arange(T) >= np.array(begins)[:, None])
    assert np.abs(truth(rows, inject=True)[0] - truth(rows)[0])[2].max() > 0.1

    def run(**pieces):
        old = truth(rows, inject=condition == "conditioned")[0] + 0.1
        settings = {"condition": condition, "group_size": 7, **pieces}
        return compute(tiny_config, params, rows, FULL, old=jnp.asarray(old), **settings)

    plain, packed = run(), run(pack_tokens=48)
    assert_same(packed, plain)
    assert norm(plain[1]) > 1e-2
    assert plain[2].pop("positions") == 14 * (S + T)
    assert packed[2].pop("nodes") < plain[2].pop("nodes")
    for key, value in plain[2].items():
        np.testing.assert_allclose(packed[2][key], value, rtol=1e-5, atol=1e-5, err_msg=key)


def test_packed_bins_attend_as_the_settings_say(tiny_config, params, rows, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")  # which has no CUDA kernel: refused where it is chosen
    with pytest.raises(InputError, match=r"use attention\.impl=blocks"):
        compute(tiny_config, params, rows, FULL, pack_tokens=24, attention="pallas")


@pytest.mark.parametrize("name", CASES)
def test_any_split_gives_the_same_loss_and_gradient(tiny_config, params, rows, name):
    objective, condition, sizes = CASES[name]

    def run(size):
        return compute(tiny_config, params, rows, objective, old=old_logp(rows), microbatch=size, condition=condition)

    whole = run(0)
    assert norm(whole[1]) > 1e-2
    for size in sizes:
        assert_same(run(size), whole)


def widened(x):
    """Row arrays with PAD more columns; token-level advantages instead of one a row."""
    return jnp.pad(x, ((0, 0), (0, PAD))) if x.ndim == 2 else x


def test_padding_columns_change_nothing(tiny_config, params, rows):
    """Also: [N,T] advantages that repeat [N] ones are the same advantages."""
    plain = compute(tiny_config, params, rows, FULL, old=old_logp(rows), microbatch=4)
    wide = rows.replace(advantage_R=jnp.repeat(rows.advantage_R[:, None], T, axis=1))
    wide = jax.tree.map(widened, wide).replace(
        latent=rows.latent.replace(
            segment_BT=jnp.pad(rows.latent.segment_BT, ((0, 0), (0, PAD)), mode="edge"),
            gamma_BT=jnp.pad(rows.latent.gamma_BT, ((0, 0), (0, PAD)), mode="edge"),
        )
    )
    assert_same(compute(tiny_config, params, wide, FULL, old=widened(old_logp(rows)), microbatch=4), plain)


def test_loss_is_the_formula(tiny_config, params, rows, truth):
    """GRPO + A*H + KL, marginal, token by token in numpy."""
    loss, _, _ = compute(tiny_config, params, rows, FULL, old=old_logp(rows), microbatch=4)
    logp, entropy = truth(rows)
    old, mu, ref, mask = (np.asarray(x) for x in (old_logp(rows), rows.raw_logp_RT, rows.ref_logp_RT, rows.mask_RT))
    total = 0.0
    for n, t in zip(*np.nonzero(mask), strict=True):
        a, r = float(rows.advantage_R[n]), np.exp(logp[n, t] - old[n, t])
        weight = min(np.exp(old[n, t] - mu[n, t]), 2.0) if BRANCH_AT[n] and t >= BRANCH_AT[n] else 1.0
        surrogate = max(-a * r, -a * np.clip(r, 0.8, 1.2))
        total += weight * (min(surrogate, -3 * a) if a < 0 else surrogate) - 0.1 * a * entropy[n, t]
        d = ref[n, t] - logp[n, t]
        total += 0.2 * weight * r * (np.exp(d) - d - 1)
    np.testing.assert_allclose(loss, total / mask.sum(), rtol=2e-5)


def test_conditioned_scores_with_z(tiny_config, params, rows, truth):
    """Log-probs recorded with z on are reproduced: the ratio is exactly 1, and the path of z gets gradients."""
    rows = rows.replace(raw_logp_RT=jnp.asarray(truth(rows, inject=True)[0]))
    _, gradients, totals = compute(tiny_config, params, rows, PLAIN, condition="conditioned", microbatch=2)
    got = one_step(totals)
    assert got["update/ratio_mean"] == got["latent/weight_ess"] == 1.0
    assert got["mismatch/logp_max"] < 1e-5
    assert all(jnp.abs(g).max() > 1e-6 for g in gradients["psa"].values())


def test_marginal_scores_without_z(tiny_config, params, rows, truth):
    """Tokens sampled with z differ by design and are left out of the mismatch; PSA gets no gradient."""
    with_z, plain = truth(rows, inject=True)[0], truth(rows)[0]
    rows = rows.replace(raw_logp_RT=jnp.asarray(with_z))
    _, gradients, totals = compute(tiny_config, params, rows, PLAIN, microbatch=2)
    assert (np.abs(with_z - plain) * np.asarray(rows.mask_RT)).max() > 0.1
    assert one_step(totals)["mismatch/logp_max"] < 1e-5
    assert norm(gradients["psa"]) == 0


def test_metrics_from_their_definitions(tiny_config, params, rows, truth):
    _, _, totals = compute(tiny_config, params, rows, PLAIN, microbatch=2)
    got = one_step(totals, steps=2, loss=3.0, grad_norm=5.0, skipped=1, empty=3)
    (logp, entropy), mask = truth(rows), np.asarray(rows.mask_RT) > 0
    on = mask & (BRANCH_AT[:, None] > 0) & (np.arange(T) >= BRANCH_AT[:, None])
    ratio = np.exp(logp - np.asarray(rows.raw_logp_RT))[on]
    weight = np.minimum(ratio, 2.0)
    gap = np.abs(logp - np.asarray(rows.raw_logp_RT))[mask & ~on]
    d = (np.asarray(rows.ref_logp_RT) - logp)[mask]
    drawn = np.ones(mask.shape)
    drawn[on] = weight
    assert totals["taught"] == mask.sum()
    expected = {
        "update/loss": 1.5,
        "update/grad_norm": 2.5,
        "update/ratio_mean": 1.0,
        "update/packing_ratio": float((rows.prompt_len_R + rows.length_R - 1).sum()) / (N * (S + T)),
        "update/tokens": float((rows.prompt_len_R + rows.length_R - 1).sum()),
        "update/clip_low": 0.0,
        "update/clip_high": 0.0,
        "update/kl_ref": (drawn[mask] * (np.exp(d) - d - 1)).mean(),
        "update/entropy": entropy[mask].mean(),
        "update/skipped": 1,
        "update/empty": 3,
        "mismatch/logp_mean": gap.mean(),
        "mismatch/logp_max": gap.max(),
        "mismatch/outside": (ratio > 2.0).mean(),
        "latent/weight_ess": weight.sum() ** 2 / (on.sum() * (weight**2).sum()),
    }
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("change", ["no latent", "cap 0"])
def test_without_weights_the_first_loss_is_minus_the_mean_advantage(tiny_config, params, rows, change):
    settings = {"importance_cap": 0.0} if change == "cap 0" else {}
    rows = rows.replace(latent=None) if change == "no latent" else rows
    loss, _, totals = compute(tiny_config, params, rows, PLAIN, microbatch=4, **settings)
    mask = np.asarray(rows.mask_RT)
    np.testing.assert_allclose(loss, -(mask * np.asarray(rows.advantage_R)[:, None]).sum() / mask.sum(), atol=1e-6)
    assert one_step(totals)["latent/weight_ess"] == 1


@pytest.mark.parametrize(
    ("pieces", "form"), [({"microbatch": 4}, "token_truncate"), ({"pack_tokens": 48}, "sequence_mask")]
)
def test_after_a_rounded_rollout_every_token_is_weighed(tiny_config, params, rows, truth, pieces, form):
    """By pi_old / mu, z or no z, of the token or of its whole response, however rows are split."""
    logp, mask = truth(rows)[0], np.asarray(rows.mask_RT)
    ratio = np.exp(logp - np.asarray(rows.raw_logp_RT))
    if form == "sequence_mask":
        ratio = np.where(mask > 0, ratio, 1).prod(1, keepdims=True) * np.ones((1, T))
    weight = np.minimum(ratio, 2.0) if form == "token_truncate" else np.where(ratio <= 2.0, ratio, 0)
    loss, _, totals = compute(tiny_config, params, rows, PLAIN, exact_rollout=False, importance=form, **pieces)
    np.testing.assert_allclose(
        loss, -(mask * weight * np.asarray(rows.advantage_R)[:, None]).sum() / mask.sum(), rtol=1e-5
    )
    counted, got = weight[mask > 0], one_step(totals)
    np.testing.assert_allclose(
        got["latent/weight_ess"], counted.sum() ** 2 / (counted.size * (counted**2).sum()), rtol=1e-5
    )
    np.testing.assert_allclose(got["mismatch/outside"], (ratio[mask > 0] > 2.0).mean(), rtol=1e-6)
    assert 0 < got["mismatch/outside"] < 1
