"""Every shipped config loads, is valid, keeps what its docstring promises, and refers to things that exist."""

import ast
import re
from pathlib import Path

import pytest

from iiblpo_jax.config import derived, files, overrides, validation

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))
NAMES = {path.stem: path for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_it_loads_and_is_valid(path):
    validation.validate(files.load_file(path))


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_its_docstring_gives_the_launch_line_time_memory_and_result(path):
    doc = ast.get_docstring(ast.parse(path.read_text()))
    assert f"--config=configs/{path.name} --workdir=runs/" in doc
    for word in ("time", "memory", "result"):
        assert word in doc.lower()


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_its_tasks_and_objective_are_registered(path):
    from iiblpo_jax.data import gym, registry
    from iiblpo_jax.objectives import make_objective

    config = files.load_file(path)
    known = {*registry.NAMES, *(f"gym:{name}" for name in gym.names())}
    assert {*(config.task.mix or [config.task.name]), *config.eval.tasks} <= known
    make_objective(config.objective.name, max_tokens=config.rollout.max_tokens)


def test_the_baseline_is_plain_grpo_and_otherwise_the_default():
    ours = files.flatten(files.load_file(NAMES["arithmetic"]))
    plain = files.flatten(files.load_file(NAMES["arithmetic_grpo"]))
    off = {"branch.k": 0, "latent.z": 0, "ib.estimator": "none", "ib.filter": "none"}
    off |= {"ib.reward_coef": 0.0, "ib.entropy_coef": 0.0, "advantage.weight": "none"}
    differing = {key for key in ours if ours[key] != plain[key]}
    assert differing == {*off, "rollout.roots"} - {"ib.reward_coef", "ib.entropy_coef"}  # off by default
    assert {key: plain[key] for key in off} == off


@pytest.mark.parametrize("name", ["qwen2_5_7b_math_dapo", "qwen3_14b_math_dapo"])
def test_the_published_runs_have_the_released_settings(name):
    config = files.load_file(NAMES[name])
    assert (config.train.prompts_per_step, config.rollout.roots, config.branch.k) == (32, 2, 3)
    assert (config.latent.kind, config.latent.z, config.ib.filter) == ("gaussian", 128, "score")
    assert (config.ib.compression, config.ib.length_cost, config.advantage.weight) == ("information", 0.0, "none")
    assert derived.kept_per_prompt(config) * 32 / config.update.minibatches == 32
    assert (config.optim.lr, config.optim.b1, config.optim.b2, config.optim.weight_decay) == (1e-6, 0.9, 0.999, 0.01)
    assert (config.rollout.temperature, config.rollout.top_p) == (0.9, 0.9)
    assert (config.rollout.max_prompt, config.rollout.max_tokens) == (2048, 4096)
    assert config.train.steps == 2 * (6486 + 13583) // 32
    assert derived.mesh_shape(config.mesh, devices=8) in [(1, 8, 1, 1), (1, 4, 1, 2)]


def test_the_lines_of_reproduce_md_are_valid():
    """GRPO, what each row adds to it, and what each ablation takes from the main run, for both models."""
    text = (CONFIGS[0].parents[1] / "docs" / "reproduce.md").read_text()
    training, rows = text.split("| row |")
    grpo = [flag for flag in re.findall(r"--config\.\S+", training) if "$" not in flag]
    added = re.findall(r"and `(--config\.[^`]+)`", rows)
    changed = re.findall(r"`(--config\.[^`]+)`", rows.split("Ablations")[1])
    assert len(grpo) == 8 and len(added) == 5 and len(changed) == 7
    lines = [[], grpo, *([*grpo, flag] for flag in added), *([flag] for flag in changed)]
    for name in ("qwen2_5_7b_math_dapo", "qwen3_14b_math_dapo"):
        for line in lines:
            validation.validate(overrides.override(files.load_file(NAMES[name]), line))
