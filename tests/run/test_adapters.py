"""A run that trains an adapter beside frozen weights: what moves, what is kept, and what comes of it."""

import sys

import jax
import numpy as np
import pytest
from rich.console import Console

from iiblpo_jax import InputError, cli, export, load_model
from iiblpo_jax.config import files
from iiblpo_jax.defaults import default_config
from iiblpo_jax.model.adapters.adapted import stored
from iiblpo_jax.model.decoder import params_of
from iiblpo_jax.planning.shapes import abstract_step
from iiblpo_jax.run.checkpoints import Checkpoints
from iiblpo_jax.run.restored import load_policy
from iiblpo_jax.run.trainer import Trainer
from iiblpo_jax.step.programs import abstract_of

QUIET = Console(quiet=True)


def make_config(**lora):
    """Plain GRPO with a KL, so that the reference is read; two pieces a minibatch."""
    config = default_config()
    config.lora.update({"rank": 4, "base": "int8"} | lora)
    config.task.options = {"k_min": 2, "k_max": 3, "train_size": 64, "heldout_size": 16}
    config.rollout.update({"roots": 4, "slots": 8, "refill_at": 3, "max_prompt": 8, "max_tokens": 20})
    config.rollout.update({"top_p": 1.0, "temperature": 1.6, "unroll": False})
    config.branch.k, config.ib.filter, config.advantage.weight = 0, "none", "none"
    config.train.prompts_per_step, config.optim.lr = 4, 1e-2
    config["update"].update({"minibatches": 1, "packed": False, "microbatch": 8, "kl_coef": 0.01})
    config.eval.update({"problems": 4, "samples": 1, "k": (1,), "greedy": False})
    return config


def run(verb, *arguments):
    """Runs a verb as the command line would; its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["verb", *map(str, arguments)])
        patch.setenv(cli.CACHE, "")
        try:
            cli.run(verb.main)
        except SystemExit as stop:
            return stop.code
        return 0


def shapes(tree):
    """Shape, dtype and place of every array."""
    return [(path, x.shape, x.dtype, x.sharding) for path, x in jax.tree_util.tree_leaves_with_path(tree)]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("adapter")


@pytest.fixture(scope="module")
def straight(workdir):
    """Two steps, a checkpoint after the first: (metrics of each, params after each, the base before and after)."""
    trainer = Trainer(make_config(), workdir, console=QUIET)
    planned = abstract_step(make_config(), trainer.model_config, trainer._mesh)
    assert shapes(planned.alive) == shapes(abstract_of((trainer.state, trainer._frozen)))
    base = jax.device_get(trainer._frozen.base.base)
    results, states = [], []
    for step, metrics, _ in trainer.steps(1, 2):
        results.append(metrics)
        states.append(jax.device_get(trainer.state))
        trainer.save(step, force=step == 1)
    after = jax.device_get(trainer._frozen.base.base)
    trainer.close()
    files.save(make_config(), workdir)
    return results, states, (base, after)


def test_only_the_adapter_moves(straight):
    results, (first, second), (base, after) = straight
    jax.tree.map(np.testing.assert_array_equal, base, after)
    assert set(first.params) == {"lora"} and len(first.params["lora"]) == 14
    assert all(np.abs(w).max() > 0 for w in first.params["lora"].values())  # every B has left 0
    assert any(np.any(first.params["lora"][name] != w) for name, w in second.params["lora"].items())
    assert not any(metrics["update/skipped"] for metrics in results)


def test_rollout_and_update_agree(straight):
    for metrics in straight[0]:
        assert metrics["update/ratio_mean"] == 1.0 and metrics["mismatch/logp_max"] < 1e-4


def test_the_reference_is_the_base_with_the_adapter_off(straight):
    before, after = (metrics["update/kl_ref"] for metrics in straight[0])
    assert abs(before) < 1e-9 and after > 1e-5


def test_a_checkpoint_holds_the_adapter_alone_and_names_its_base(straight, workdir):
    checkpoints = Checkpoints(workdir, keep=1, every=0)
    newest = checkpoints.newest()
    checkpoints.close()
    held = {name: int(np.prod(shape)) for name, (shape, _) in newest["arrays"].items()}
    assert not any("policy.embed" in name or "layers" in name for name in held)
    adapter = sum(w.size for w in straight[1][0].params["lora"].values())
    assert sum(held.values()) <= 3 * adapter + 8  # weights, two moments, counters
    assert newest["extra"]["base"] == default_config().model.path and len(newest["extra"]["model"]) == 64


def test_resuming_is_bit_exact(straight, workdir):
    trainer = Trainer(make_config(), workdir, console=QUIET)
    assert trainer.restore() == 1
    trainer.step(2)
    found = jax.device_get(trainer.state)
    trainer.close()
    jax.tree.map(np.testing.assert_array_equal, found, straight[1][1])


@pytest.mark.parametrize("values", [{"alpha": 8.0}, {"rank": 2}, {"base": "float32"}, {"rank": 0, "base": "float32"}])
def test_another_adapter_does_not_go_on(straight, workdir, values):
    with pytest.raises(InputError, match=r"was trained with lora\.rank = 4, .* and the config says .*set it back, or"):
        Trainer(make_config(**values), workdir, console=QUIET)


def test_what_comes_of_it_is_the_policy_that_was_trained(straight, workdir, tmp_path):
    config, weights = make_config(), straight[1][0].params["lora"]
    policy = load_policy(config, workdir)
    assert policy.step == 1
    jax.tree.map(np.testing.assert_array_equal, policy.adapter, weights)
    base = stored(params_of(load_model(config.model.path)[0]), "float32")
    moved = jax.tree.map(lambda x, y: float(np.abs(x - y).max()), policy.params, base)
    assert min(moved["layers"][name] for name in ("qkv", "o", "gate_up", "down")) > 1e-3  # more than int8 alone does

    assert run(export, f"--workdir={workdir}", f"--out={tmp_path / 'whole'}") == 0
    whole = params_of(load_model(tmp_path / "whole")[0])
    jax.tree.map(np.testing.assert_array_equal, whole, policy.params)
    assert run(export, f"--workdir={workdir}", f"--out={tmp_path / 'peft'}", "--adapter") == 0
    again = load_policy(make_config(path=str(tmp_path / "peft")), tmp_path)  # a new run, from that adapter on
    assert again.step == 0
    jax.tree.map(np.testing.assert_array_equal, again.params, policy.params)
