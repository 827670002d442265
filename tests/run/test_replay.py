"""A saved batch comes back as it was, other files are refused, and the bad rows are found."""

import io
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from iiblpo_jax import InputError
from iiblpo_jax.model.decoder import bind
from iiblpo_jax.model.logprobs import response_logprobs
from iiblpo_jax.model.steering.psa import Latent
from iiblpo_jax.objectives import make_objective
from iiblpo_jax.objectives.rows import Rows
from iiblpo_jax.run.replay import examine, finding_table, load_batch, save_batch
from iiblpo_jax.update.gradient import MinibatchGradient
from iiblpo_jax.update.settings import UpdateSettings

N, C, T = 4, 8, 5
LENGTH = np.array([5, 3, 4, 2])


@pytest.fixture(scope="module")
def rows(tiny_config, tiny_params):
    """Four trajectories whose recorded log-probs are the model's, but for row 2: off by 0.7 on one token."""
    rng = np.random.default_rng(0)
    mask_RT = jnp.asarray(np.arange(T) < LENGTH[:, None], jnp.float32)
    tokens_RC, prompt_len_R = jnp.asarray(rng.integers(1, tiny_config.vocab_size, (N, C))), jnp.full(N, 3)
    logp_RT = response_logprobs(bind(tiny_config, tiny_params), tokens_RC, prompt_len_R, T)[0]
    number_R = jnp.arange(N, dtype=jnp.float32)
    return Rows(
        tokens_RC=tokens_RC,
        prompt_len_R=prompt_len_R,
        mask_RT=mask_RT,
        own_mask_RT=mask_RT,
        raw_logp_RT=logp_RT.at[2, 1].add(0.7),
        advantage_R=number_R - 1.5,
        reward_R=number_R,
        correct_R=number_R,
        keep_R=np.ones(N, bool),
        ib_score_R=number_R,
        group_R=jnp.arange(N) // 2,
        length_R=jnp.asarray(LENGTH),
        trajectory_R=jnp.arange(N) + 10,
        parent_R=jnp.full(N, -1),
        branch_at_R=jnp.zeros(N, jnp.int32),
        extras={"bonus": number_R},
    )


@pytest.fixture(scope="module")
def gradient(tiny_config):
    objective = make_objective("grpo", max_tokens=T)
    return MinibatchGradient(settings=UpdateSettings(microbatch=2), objective=objective, model_config=tiny_config)


def test_a_batch_survives_the_disk(rows, tmp_path):
    path = save_batch(tmp_path, 7, rows, jax.random.key(3))
    assert path.name == "bad_step_000007.npz"
    with np.load(path, allow_pickle=False) as file:
        assert {"rows.tokens_RC", "rows.extras.bonus", "key", "step"} <= set(file)
    step, loaded, key = load_batch(path, jax.eval_shape(lambda: rows))
    assert step == 7 and (jax.random.key_data(key) == jax.random.key_data(jax.random.key(3))).all()
    assert jax.tree.structure(loaded) == jax.tree.structure(rows)
    jax.tree.map(np.testing.assert_array_equal, loaded, rows)


def test_rows_with_a_latent_too(rows, tmp_path):
    latent = Latent(z_BJZ=jnp.ones((N, 1, 2)), segment_BT=jnp.zeros((N, C), jnp.int32), gamma_BT=jnp.ones((N, C)))
    steered = rows.replace(latent=latent)
    _, loaded, _ = load_batch(save_batch(tmp_path, 1, steered, jax.random.key(0)), steered)
    assert jax.tree.structure(loaded) == jax.tree.structure(steered)


def test_what_is_no_batch_of_this_run_is_refused(rows, tmp_path):
    missing, text, pickled, other = (tmp_path / name for name in ("a.npz", "b.npz", "c.npz", "d.npz"))
    text.write_text("not a zip file")
    pickled.write_bytes(pickle.dumps({"step": 1}))
    np.savez(other, x=np.zeros(1))
    for path in (missing, text, pickled, other):
        with pytest.raises(InputError, match=r"cannot be read .*; give a bad_step_NNNNNN\.npz"):
            load_batch(path, rows)
    path = save_batch(tmp_path, 1, rows, jax.random.key(0))
    for changed in (
        rows.replace(ref_logp_RT=rows.mask_RT),
        rows.replace(extras={}),
        rows.replace(reward_R=jnp.ones(9)),
    ):
        with pytest.raises(InputError, match="of another config or version: rows"):
            load_batch(path, changed)


def test_a_gap_is_found_in_its_row(gradient, tiny_params, rows):
    finding = examine(gradient, {"policy": tiny_params}, rows, jax.random.key(0), step=3)
    np.testing.assert_allclose(finding.gap_R, [0, 0, 0.7, 0], atol=1e-5)
    assert finding.finite_R.all() and finding.loss < 1e3 and 0 < finding.grad_norm < 1e6


def test_rows_that_are_not_finite_come_first(gradient, tiny_params, rows):
    bad = rows.replace(
        advantage_R=rows.advantage_R.at[1].set(jnp.inf), raw_logp_RT=rows.raw_logp_RT.at[3, 0].set(jnp.nan)
    )
    finding = examine(gradient, {"policy": tiny_params}, bad, jax.random.key(0), step=3)
    np.testing.assert_array_equal(finding.finite_R, [True, False, True, False])
    assert not np.isfinite(finding.loss) and not np.isfinite(finding.grad_norm)
    out = io.StringIO()
    Console(file=out, width=120).print(finding_table(finding, bad))
    cells = [line.replace("│", " ").split() for line in out.getvalue().splitlines() if line.startswith("│")]
    assert [(row[0], row[1], row[-1]) for row in cells] == [
        ("1", "11", "NO"),
        ("3", "13", "NO"),
        ("2", "12", "yes"),
        ("0", "10", "yes"),
    ]
    assert "2 rows not finite" in out.getvalue()


def test_weights_that_are_not_finite_spoil_every_row(gradient, tiny_params, rows):
    spoilt = {**tiny_params, "final_norm": tiny_params["final_norm"] * jnp.nan}
    finding = examine(gradient, {"policy": spoilt}, rows, jax.random.key(0), step=3)
    assert not finding.finite_R.any()
