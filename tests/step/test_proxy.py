"""What a reward model says of a Forest, and what it pays: against rows read one by one, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from iiblpo_jax.bottleneck import Reading
from iiblpo_jax.model.reward import RIDGE, RewardModel, make_head, typical
from iiblpo_jax.reward_models.training import padded_last_states
from iiblpo_jax.rollout.forest import Forest
from iiblpo_jax.step.inform import InformSpec, inform
from iiblpo_jax.step.proxy import DISTANCE, PROXY, TAIL, ProxyReward, ProxySpec

Z, S, T = 3, 3, 5
LENGTH_R = np.array([4, 5, 2, 0, 5, 5])  # the fourth was not grown
PROMPT_LEN = np.array([3, 2])


@pytest.fixture(scope="module")
def forest():
    """Two prompts of three trajectories; the second of a prompt inherits two tokens of the first."""
    rng = np.random.default_rng(0)
    tokens_RT = rng.integers(2, 23, (6, T))
    tokens_RT[[1, 4], :2] = tokens_RT[[0, 3], :2]
    tokens_RT *= np.arange(T) < LENGTH_R[:, None]
    numbers, flags = jnp.zeros(6, jnp.int32), jnp.zeros(6, bool)
    return Forest(
        prompt_PS=jnp.asarray(rng.integers(2, 23, (2, S)) * (np.arange(S) < PROMPT_LEN[:, None]), jnp.int32),
        prompt_len_P=jnp.asarray(PROMPT_LEN, jnp.int32),
        tokens_RT=jnp.asarray(tokens_RT, jnp.int32),
        raw_logp_RT=jnp.zeros((6, T)),
        entropy_RT=jnp.zeros((6, T)),
        length_R=jnp.asarray(LENGTH_R, jnp.int32),
        finish_R=numbers,
        parent_R=numbers - 1,
        branch_at_R=numbers,
        z_RZ=jnp.zeros((6, 0)),
        fallback_R=flags,
        left_R=jnp.ones(6),
    )


def test_columns_are_those_of_rows_read_alone(forest, tiny_config, tiny_params):
    """In bins of nine nodes, which two rows do not fit in."""
    rng = np.random.default_rng(1)
    mean_Z, covariance_ZZ = rng.normal(size=Z), np.cov(rng.normal(size=(9, Z)), rowvar=False)
    head = make_head(jax.random.key(2), width=16, latent=Z)
    weights = RewardModel(backbone=tiny_params, head=head, typical=typical(mean_Z, covariance_ZZ))
    reader = ProxyReward(model=tiny_config, reading=Reading(pack_tokens=9))
    found = inform({"reward": weights}, forest, None, spec=InformSpec(readers=(("reward", reader),)))

    length_R = PROMPT_LEN[[0, 0, 0, 1, 1, 1]] + LENGTH_R
    h_RD = jax.jit(lambda *rows: padded_last_states(tiny_config, tiny_params, *rows))(forest.sequences_RC, length_R)
    mean_RZ = np.float64(h_RD) @ np.float64(head.encode_YD[:Z]).T
    np.testing.assert_allclose(found[PROXY], mean_RZ @ np.float64(head.value_Z), rtol=1e-3, atol=1e-4)
    off_RZ = mean_RZ - mean_Z
    square_R = (off_RZ * np.linalg.solve(covariance_ZZ + RIDGE * np.eye(Z), off_RZ.T).T).sum(1)
    np.testing.assert_allclose(found[DISTANCE], np.sqrt(square_R), rtol=1e-3)
    np.testing.assert_allclose(found[TAIL], scipy.stats.chi2.sf(square_R, Z), rtol=2e-2, atol=1e-6)


COLUMNS = {
    PROXY: jnp.array([1.0, -2.0, 0.5, 9.0, 0.0, 3.0]),
    DISTANCE: jnp.array([2.0, 1.0, 0.0, 9.0, 4.0, 1.0]),
    TAIL: jnp.array([0.5, 0.04, 0.06, 0.0, 0.001, 1.0]),
}
TRUE_R = jnp.array([1.0, 0.0, 1.0, 0.0, 0.0, 1.0])


def test_what_is_paid_by_hand():
    """r - lambda d of the model, alone and beside the verifier."""
    alone = ProxySpec(coef=1.0, ibl_coef=0.5, mop_alpha=0.05)
    np.testing.assert_allclose(alone.paid(TRUE_R, COLUMNS), [0.0, -2.5, 0.5, 4.5, -2.0, 2.5])
    beside = ProxySpec(coef=0.25, ibl_coef=0.0, mop_alpha=0.05)
    np.testing.assert_allclose(beside.paid(TRUE_R, COLUMNS), [1.0, -0.5, 0.875, 2.25, 0.0, 1.5])


def test_metrics_by_hand(forest):
    """Of the five that were grown: three are right, and the latents of two are outliers at five percent."""
    found = ProxySpec(coef=1.0, ibl_coef=0.5, mop_alpha=0.05).metrics(forest, TRUE_R, COLUMNS)
    wanted = {"true": 3 / 5, "proxy": 2.5 / 5, "paid": -1.5 / 5, "distance": 8 / 5, "mop": 2 / 5}
    assert found.keys() == {f"reward/{name}" for name in wanted}
    for name, value in wanted.items():
        np.testing.assert_allclose(found[f"reward/{name}"], value, rtol=1e-6)
