"""Weights pi_old / mu: every form by hand, and a z that does nothing under every kind of truncation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from iiblpo_jax.model.decoder import params_of
from iiblpo_jax.model.steering.cvae import CVAE
from iiblpo_jax.objectives import Rows, make_objective
from iiblpo_jax.rollout.branching import Branching
from iiblpo_jax.rollout.engine import rollout
from iiblpo_jax.rollout.publication import PublicationSpec, publish
from iiblpo_jax.rollout.sampling import Sampling
from iiblpo_jax.rollout.spec import RolloutSpec
from iiblpo_jax.step.score import BottleneckSpec, CreditSpec, FilterSpec, LatentSpec, ScoreSpec, every_row
from iiblpo_jax.update.gradient import MinibatchGradient
from iiblpo_jax.update.importance import importance, outside, weighed
from iiblpo_jax.update.settings import UpdateSettings

ALL = UpdateSettings(exact_rollout=False)
# Ratios of two responses, of three tokens and of two; what stands behind an end is nothing's.
RATIO_RT = np.array([[0.5, 3.0, 1.2], [0.25, 1.5, np.nan]])
MASK_RT = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]])


def recorded(logp_RT, mask_RT) -> Rows:
    """Roots of one group whose tokens were drawn with these log-probs."""
    mask_RT = jnp.asarray(mask_RT, jnp.float32)
    zero_R = jnp.zeros(mask_RT.shape[0], jnp.int32)
    return Rows(
        tokens_RC=jnp.ones((mask_RT.shape[0], 1 + mask_RT.shape[1]), jnp.int32),
        prompt_len_R=zero_R + 1,
        length_R=mask_RT.sum(1).astype(jnp.int32),
        mask_RT=mask_RT,
        own_mask_RT=mask_RT,
        raw_logp_RT=jnp.asarray(logp_RT, jnp.float32),
        group_R=zero_R,
        trajectory_R=jnp.arange(mask_RT.shape[0]),
        parent_R=zero_R - 1,
        branch_at_R=zero_R,
        keep_R=zero_R == 0,
        **{name: jnp.zeros(mask_RT.shape[0]) for name in ("reward_R", "correct_R", "ib_score_R", "advantage_R")},
    )


@pytest.mark.parametrize(
    ("form", "floor", "cap", "expected"),
    [
        ("token_truncate", 0.0, 2.0, [[0.5, 2.0, 1.2], [0.25, 1.5]]),
        ("token_truncate", 0.5, 2.0, [[0.5, 2.0, 1.2], [0.5, 1.5]]),
        ("token_mask", 0.0, 2.0, [[0.5, 0.0, 1.2], [0.25, 1.5]]),
        ("token_mask", 0.4, 2.0, [[0.5, 0.0, 1.2], [0.0, 1.5]]),
        ("sequence_truncate", 0.0, 1.5, [[1.5] * 3, [0.375] * 2]),  # 1.8 and .375
        ("sequence_truncate", 0.5, 2.0, [[1.8] * 3, [0.5] * 2]),
        ("sequence_mask", 0.0, 1.5, [[0.0] * 3, [0.375] * 2]),
        ("sequence_mask", 0.5, 2.0, [[1.8] * 3, [0.0] * 2]),
    ],
)
def test_every_form_by_hand(form, floor, cap, expected):
    rows = recorded(np.full((2, 3), -2.0), MASK_RT)
    settings = dataclasses.replace(ALL, importance=form, importance_floor=floor, importance_cap=cap)
    old_logp_RT = jnp.asarray(np.log(RATIO_RT) - 2, jnp.float32)
    found, out = importance(rows, old_logp_RT, settings), outside(rows, old_logp_RT, settings)
    ratio_RT = [[1.8] * 3, [0.375] * 2] if form.startswith("sequence") else RATIO_RT
    for row, (weights, ratios) in enumerate(zip(expected, ratio_RT, strict=True)):
        n = len(weights)
        np.testing.assert_allclose(found[row, :n], weights, rtol=1e-6)
        np.testing.assert_array_equal(out[row, :n], [not floor <= ratio <= cap for ratio in ratios[:n]])
    assert np.isfinite(found).all()


def test_ratios_that_overflow_are_bounded():
    rows = recorded([[-100.0]], [[1.0]])
    assert importance(rows, jnp.array([[100.0]]), ALL) == pytest.approx(2.0)
    masked = dataclasses.replace(ALL, importance="sequence_mask")
    assert importance(rows, jnp.array([[100.0]]), masked) == 0.0


def test_no_cap_no_weights():
    rows = recorded([[-1.0]], [[1.0]])
    unweighed = dataclasses.replace(ALL, importance_cap=0.0, importance="token_mask")
    assert importance(rows, jnp.array([[-3.0]]), unweighed) == 1.0
    assert outside(rows, jnp.array([[-3.0]]), unweighed) == 0.0


@pytest.fixture(scope="module")
def roll(tiny_config, tiny_params, tiny_psa_params):
    """A function from sampling settings to (trees whose branches have a z that says nothing, log-probs of pi_old)."""
    latents = {"psa": tiny_psa_params, "cvae": params_of(CVAE(tiny_config.d_model, 4, 8, rngs=nnx.Rngs(3)))}
    published = publish(tiny_params, spec=PublicationSpec(model=tiny_config))
    prompt_PS, prompt_len_P = jax.random.randint(jax.random.key(5), (4, 4), 2, 23), jnp.array([4, 1, 3, 2])
    silent = 1e-30  # not 0, with which no branch would have a z

    def run(temperature, **changes):
        spec = RolloutSpec(
            model=tiny_config,
            roots=2,
            branching=Branching(k=2, min_suffix=1),
            slots=8,
            max_tokens=8,
            stop_ids=(0, 1),
            half_life=8.0,
            strength=silent,
            **changes,
        )
        forest, _ = rollout(published, prompt_PS, prompt_len_P, jax.random.key(9), spec=spec, latents=latents)
        score = ScoreSpec(
            bottleneck=BottleneckSpec(),
            filter=FilterSpec(rule="none", keep=forest.group_size),
            credit=CreditSpec(objective=make_objective("grpo", max_tokens=8)),
            latent=LatentSpec(levels=1, half_life=8.0, strength=silent),
        )
        rows = every_row(forest, jnp.zeros(forest.length_R.shape), {}, score)
        settings = UpdateSettings(temperature=temperature)
        gradient = MinibatchGradient(
            settings=settings, objective=make_objective("grpo", max_tokens=8), model_config=tiny_config
        )
        policy = {"policy": tiny_params, "psa": tiny_psa_params}
        return rows, jax.jit(gradient.log_probs)(policy, rows)[0]

    return run


@pytest.mark.parametrize(
    ("sampling", "min_tokens"),
    [
        (Sampling(temperature=0.9, top_p=0.7), 0),
        (Sampling(temperature=1.4, top_k=3, min_p=0.1), 8),
    ],
)
def test_a_z_that_says_nothing_has_weight_one(roll, sampling, min_tokens):
    """Whatever truncation left out: on branches as on roots, where the same tokens are not weighed at all."""
    rows, old_logp_RT = roll(sampling.temperature, sampling=sampling, min_tokens=min_tokens)
    settings = UpdateSettings(temperature=sampling.temperature)
    on_RT = np.asarray(weighed(rows, settings)) > 0
    assert on_RT.any() and (on_RT <= (np.asarray(rows.parent_R) >= 0)[:, None]).all()
    for form in ("token_truncate", "sequence_truncate"):
        for exact in (True, False):
            s = dataclasses.replace(settings, importance=form, exact_rollout=exact)
            found = importance(rows, old_logp_RT, s)
            counted = np.asarray(rows.mask_RT) > 0
            np.testing.assert_allclose(found[counted], 1.0, atol=1e-4)
    assert float(jnp.exp(old_logp_RT)[on_RT].min()) < 0.9  # some draws were unsure
