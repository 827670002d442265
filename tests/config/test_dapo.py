"""DAPO as a whole in config terms, against the numbers of its paper."""

import numpy as np
import pytest

from iiblpo_jax.config.validation import validate
from iiblpo_jax.defaults import dapo, default_config
from iiblpo_jax.step import specs


@pytest.fixture(scope="module")
def config():
    c = default_config()
    c.rollout.max_tokens = 20480
    c.train.prompts_per_step, c.update.minibatches, c.update.kl_coef = 512, 16, 0.1
    c.branch.k, c.latent.z = 3, 16
    return dapo(c, samples=16)


def test_its_parts(config):
    validate(config)
    method = specs.objective(config)
    assert (config.objective.clip_low, config.objective.clip_high) == (0.2, 0.28)
    assert method.aggregate == "token-mean"
    assert config.update.kl_coef == config.ib.entropy_coef == config.ib.reward_coef == 0
    assert (config.rollout.temperature, config.rollout.top_p, config.rollout.top_k) == (1, 1, 0)
    assert (config.reward.overlong, config.reward.overlong_buffer) == ("shape", 4096)
    spec = specs.score_spec(config, method)
    assert (spec.filter.rule, spec.filter.keep, spec.credit.weight) == ("contrast", 16, "none")
    assert config.train.refills == 10 and not specs.uses_latents(config)


def test_the_punishment_is_the_papers_where_right_and_wrong_are_one_apart(config):
    """Standardised within the group, rewards of +-1 less up to 1 are rewards of 0 and 1 less up to a half."""
    random = np.random.default_rng(0)
    right, share = random.random(16) < 0.5, random.random(16)  # share of the punishment
    theirs, ours = np.where(right, 1, -1) - share, right - config.reward.overlong_penalty * share
    np.testing.assert_allclose((theirs - theirs.mean()) / theirs.std(), (ours - ours.mean()) / ours.std())
