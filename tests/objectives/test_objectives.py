"""The registry."""

import numpy as np
import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.defaults import UNGROUPED, WHOLE_GROUPS
from iiblpo_jax.objectives import METHODS, advantages, make_objective
from iiblpo_jax.objectives.rows import ON_REQUEST


def test_what_a_config_is_told_of_methods_is_so(make_rows):
    """Which compare the trajectories of a prompt: with one each, all equally likely, the others give no advantage."""
    asked = {"extras": {name: np.zeros(2) for name in ON_REQUEST}, "ref_logp_RT": np.zeros((2, 1))}
    alone = make_rows(np.array([1.0, 0.0]), np.array([0, 1]), **asked)
    made = {name: make_objective(name, max_tokens=10) for name in METHODS}
    assert {name for name, method in made.items() if np.any(advantages(method, alone))} == set(UNGROUPED)
    assert {name for name, method in made.items() if method.needs_groups} == set(WHOLE_GROUPS)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_builds_under_its_own_name(name):
    assert make_objective(name, max_tokens=10).name == name


def test_published_defaults():
    aggregates = {name: make_objective(name, max_tokens=10).aggregate for name in METHODS}
    assert aggregates == {
        "grpo": "token-mean",
        "dr_grpo": "seq-mean-token-sum-norm",
        "dapo": "token-mean",
        "rloo": "seq-mean-token-sum",
        "reinforce_pp": "token-mean",
        "reinforce_pp_baseline": "token-mean",
        "gspo": "seq-mean-token-mean",
        "cispo": "token-mean",
        "sapo": "seq-mean-token-mean",
        "bapo": "token-mean",
        "dppo": "seq-mean-token-sum-norm",
        "clip_cov": "token-mean",
        "kl_cov": "token-mean",
        "forking_tokens": "token-mean",
        "spine": "token-mean",
        "entropy_adv": "token-mean",
        "ucpo": "token-mean",
        "arm": "token-mean",
        "imentor": "token-mean",
        "darling": "token-mean",
        "mara": "seq-mean-token-sum-norm",
        "disco": "token-mean",
        "tspo": "token-mean",
    }


def test_none_keeps_the_default():
    overrides = {"clip_low": None, "clip_high": 0.5, "aggregate": None}
    objective = make_objective("dapo", max_tokens=10, overrides=overrides)
    assert objective.policy_loss.keywords == {"clip_low": 0.2, "clip_high": 0.5}
    assert objective.aggregate == "token-mean"


@pytest.mark.parametrize(
    ("name", "overrides", "words"),
    [
        ("ppo2", {}, "'ppo2'.*arm, .*dapo, darling, disco, dppo, dr_grpo, .*grpo, gspo, .*rloo"),
        ("grpo", {"alpha": 0.4}, "objective.alpha does not apply to 'grpo'.*aggregate, clip_high, clip_low"),
        ("grpo", {"aggregate": "mean"}, "objective.aggregate = 'mean'.*token-mean"),
    ],
)
def test_bad_input_names_the_thing_and_the_mend(name, overrides, words):
    with pytest.raises(InputError, match=words):
        make_objective(name, max_tokens=10, overrides=overrides)
