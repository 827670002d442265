"""Presets: each can run, is what its docstring says, and does not depend on what trees the config had before."""

import pytest

from iiblpo_jax import defaults
from iiblpo_jax.config import derived, files, validation
from iiblpo_jax.defaults import default_config, plain_grpo

# What sets a preset apart, and the trajectories of a prompt: generated, kept.
METHODS = {
    "paper": (
        {
            "branch.at": "top",
            "branch.points": "shared",
            "latent.z": 128,
            "ib.filter": "score",
            "ib.entropy_coef": 0.005,
        },
        (8, 4),
    ),
    "released": (
        {"branch.at": "argmax", "branch.points": "shared", "branch.prefix_loss": False, "ib.entropy_coef": 0.005}
        | {"latent.z": 0, "ib.estimator": "none", "ib.filter": "none", "update.importance_cap": 0.0},
        (8, 8),
    ),
    "treerl": (
        {"branch.at": "logp", "branch.points": "distinct", "branch.per_point": 2, "branch.credit": "treerl"}
        | {"rollout.temperature": 1.2, "ib.filter": "random", "ib.keep_contrast": True, "optim.lr": 1.5e-6},
        (6 * (1 + 2 * 2), 16),
    ),
    "treepo": (
        {"branch.at": "segments", "branch.segment": 512, "branch.credit": "treepo", "objective.name": "dapo"}
        | {"ib.filter": "contrast", "reward.overlong": "shape", "reward.overlong_buffer": 512, "rollout.top_p": 1.0},
        (16, 16),
    ),
    "fr3e": (
        {"branch.at": "argmax", "branch.points": "distinct", "branch.per_point": 4, "branch.credit": "fr3e"}
        | {"ib.filter": "contrast", "objective.clip_low": 0.22, "objective.clip_high": 0.28},
        (1 + 16, 17),
    ),
}


def preset(name, config=None):
    return getattr(defaults, name)(config or default_config())


@pytest.mark.parametrize("name", METHODS)
def test_a_preset_can_run_and_is_what_it_says(name):
    config, (settings, sizes) = preset(name), METHODS[name]
    validation.validate(config)
    flat = files.flatten(config)
    assert {key: flat[key] for key in settings} == settings
    assert (derived.group_size(config), derived.kept_per_prompt(config)) == sizes
    assert flat["advantage.weight"] == "none"


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"paper"}))
def test_of_a_tree_nothing_is_left_that_was_there_before(name):
    other = default_config()
    other.branch.update({"parent": "previous", "depth": 3, "solved": False, "min_entropy": 1.0, "points": "distinct"})
    other.latent.z, other.ib.estimator, other.ib.reward_coef = 16, "likelihood", 0.1
    changed, usual = files.flatten(preset(name, other)), files.flatten(preset(name))
    assert changed == usual


@pytest.mark.parametrize("name", sorted(METHODS.keys() - {"paper"}))
def test_without_trees_and_credit_it_is_plain_grpo_but_for_what_is_listed(name):
    """Whoever compares two methods wants to know all that differs."""
    flat, plain = files.flatten(preset(name)), files.flatten(plain_grpo(default_config(), samples=4))
    differing = {key for key in flat if flat[key] != plain[key]}
    allowed = {key for settings, _ in METHODS.values() for key in settings} | {"rollout.roots", "branch.k", "ib.keep"}
    allowed |= {"branch.min_suffix", "reward.overlong_penalty", "train.refills", "objective.aggregate"}
    assert "branch.k" in differing and differing <= allowed


@pytest.mark.parametrize("name", METHODS)
def test_programs_are_described_as_it_says(name):
    from iiblpo_jax.step import specs

    config = preset(name)
    branching, method = specs.branching(config), specs.objective(config)
    assert branching.at == config.branch.at and branching.per_point == config.branch.per_point
    assert method.name == config.objective.name


def test_kepo_is_grpo_with_a_teacher_and_hints():
    config, plain = defaults.kepo(default_config(), samples=8), plain_grpo(default_config(), samples=8)
    validation.validate(config)
    flat, before = files.flatten(config), files.flatten(plain)
    assert {key: flat[key] for key in flat if flat[key] != before[key]} == {
        "objective.aggregate": "seq-mean-token-mean",
        "update.minibatches": 1,
        "distill.coef": 1.0,
        "hint.attempts": 5,
        "optim.lr": 2e-6,
    }
    assert (config.distill.beta, config.distill.min_reward, config.hint.replaced, config.hint.source) == (
        0.0, 1.0, 2, "teacher",
    )  # fmt: skip
