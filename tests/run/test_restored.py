"""What a workdir stands for, and the verbs that take it from there: evaluate, export."""

import dataclasses
import json
import shutil
import sys

import jax
import numpy as np
import pytest

from iiblpo_jax import InputError, cli, evaluate, export, load_model
from iiblpo_jax.config import files
from iiblpo_jax.defaults import default_config
from iiblpo_jax.model.decoder import params_of
from iiblpo_jax.model.files.saving import save_model
from iiblpo_jax.run.checkpoints import Checkpoints
from iiblpo_jax.run.restored import load_policy
from iiblpo_jax.update.optimizer import make_optimizer
from iiblpo_jax.update.state import init_state


def small_config():
    config = default_config()
    config.rollout.max_prompt, config.rollout.max_tokens = 8, 20
    config.rollout.slots, config.rollout.refill_at = 4, 1
    config.task.options = {"k_min": 2, "k_max": 3, "train_size": 16, "heldout_size": 8}
    config.eval.problems, config.eval.samples, config.eval.k = 4, 2, (1, 2)
    config.eval.greedy = False
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A workdir whose checkpoint 7 holds the embedded model times 1.5: (workdir, those weights)."""
    workdir, config = tmp_path_factory.mktemp("trained"), small_config()
    model, _ = load_model(config.model.path)
    params = jax.tree.map(lambda w: w * 1.5, params_of(model))
    state = init_state({"policy": params}, make_optimizer(config.optim))
    checkpoints = Checkpoints(workdir, keep=1, every=0)
    checkpoints.save(7, state, iterator=b"", extra={}, force=True)
    checkpoints.close()
    files.save(config, workdir)
    return workdir, jax.device_get(params)


def run(verb, *arguments):
    """Runs a verb as the command line would; returns its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["verb", *arguments])
        patch.setenv(cli.CACHE, "")
        try:
            cli.run(verb.main)
        except SystemExit as stop:
            return stop.code
        return 0


def test_the_newest_checkpoint_is_the_policy(trained):
    workdir, params = trained
    policy = load_policy(small_config(), workdir)
    assert policy.step == 7 and "checkpoint" in policy.source
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(policy.params), params)


def test_without_a_checkpoint_it_is_the_model(tmp_path):
    policy = load_policy(small_config(), tmp_path)
    assert policy.step == 0
    model, _ = load_model(small_config().model.path)
    jax.tree.map(np.testing.assert_array_equal, policy.params, params_of(model))


def test_export_writes_the_checkpoints_weights_bit_for_bit(trained, tmp_path):
    workdir, params = trained
    assert run(export, f"--workdir={workdir}", f"--out={tmp_path}/out") == 0
    model, tokenizer = load_model(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params_of(model)), params)
    assert tokenizer.decode(tokenizer.encode("6+5=11;#11")) == "6+5=11;#11"


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """A workdir whose checkpoint 3 has two codes: (workdir, its config, weights, of them those of the plain model)."""
    workdir, config = tmp_path_factory.mktemp("coded"), small_config()
    config.codes.n = 2
    begun = load_policy(config, workdir)  # before training: near the last token of every prompt, "="
    params = jax.tree.map(lambda w: w * 1.5, begun.params)
    checkpoints = Checkpoints(workdir, keep=1, every=0)
    checkpoints.save(
        3, init_state({"policy": params}, make_optimizer(config.optim)), iterator=b"", extra={}, force=True
    )
    checkpoints.close()
    files.save(config, workdir)
    return workdir, config, begun, jax.device_get(params)


def test_codes_begin_near_the_end_of_the_prompts_and_come_back_from_a_checkpoint(coded):
    workdir, config, begun, params = coded
    embed_VD = np.asarray(begun.params["embed"])
    end_D = embed_VD[begun.tokenizer.encode("=")[-1]]
    apart_N = np.linalg.norm(embed_VD[-2:] - end_D, axis=1) / np.linalg.norm(end_D)
    np.testing.assert_allclose(apart_N, config.codes.noise, rtol=1e-4)
    policy = load_policy(config, workdir)
    assert policy.step == 3 and policy.model_config.vocab_size == len(embed_VD) > policy.plain.vocab_size
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(policy.params), params)


@pytest.mark.parametrize("z", ["off", "kept"])
def test_export_writes_a_model_with_or_without_its_codes(coded, tmp_path, z):
    workdir, _, begun, params = coded
    assert run(export, f"--workdir={workdir}", f"--out={tmp_path}/out", f"--z={z}") == 0
    model, _ = load_model(tmp_path / "out")
    rows = (begun.plain if z == "off" else begun.model_config).vocab_size
    expected = params | {"embed": params["embed"][:rows]}
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(params_of(model)), expected)


def test_export_needs_a_checkpoint_and_a_place(trained, tmp_path, capsys):
    files.save(small_config(), tmp_path / "empty")
    assert run(export, f"--workdir={tmp_path}/empty", f"--out={tmp_path}/out") == 2
    assert "has no checkpoint to export" in capsys.readouterr().err
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("irreplaceable")
    assert run(export, f"--workdir={trained[0]}", f"--out={tmp_path}/taken") == 2
    assert (tmp_path / "taken" / "thesis.txt").read_text() == "irreplaceable"


def test_evaluate_writes_what_it_prints(trained):
    workdir, _ = trained
    assert run(evaluate, f"--workdir={workdir}") == 0
    found = json.loads((workdir / "eval" / "step_000007.json").read_text())
    assert found["step"] == 7
    metrics = found["metrics"]
    assert {"eval/arithmetic/pass@1", "eval/arithmetic/pass@2", "eval/arithmetic/maj@2"} <= set(metrics)
    assert 0 <= metrics["eval/arithmetic/pass@1"] <= metrics["eval/arithmetic/pass@2"] <= 1


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Checkpoints 2, 4 and 6 hold the embedded model times 2, 4, 6; the second has the best evaluation."""
    workdir, config = tmp_path_factory.mktemp("three"), small_config()
    model, _ = load_model(config.model.path)
    checkpoints = Checkpoints(workdir, keep=1, every=2, best=True)
    for step, score in ((2, 0.3), (4, 0.5), (6, 0.4)):
        params = jax.tree.map(lambda w, step=step: w * step, params_of(model))
        checkpoints.save(step, init_state({"policy": params}, make_optimizer(config.optim)), score=score)
    checkpoints.close()
    files.save(config, workdir)
    return workdir, params_of(model)


@pytest.mark.parametrize(("which", "step"), [("latest", 6), ("best", 4), ("4", 4), ("6", 6)])
def test_a_checkpoint_can_be_chosen(three, which, step):
    workdir, params = three
    policy = load_policy(small_config(), workdir, which)
    assert policy.step == step
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b * step), policy.params, params)


def test_export_takes_the_best_and_evaluate_a_step(three, tmp_path):
    workdir, params = three
    assert run(export, f"--workdir={workdir}", f"--out={tmp_path}/out", "--checkpoint=best") == 0
    exported = params_of(load_model(tmp_path / "out")[0])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b * 4), exported, params)
    assert run(evaluate, f"--workdir={workdir}", "--checkpoint=4") == 0
    assert [path.name for path in (workdir / "eval").glob("*.json")] == ["step_000004.json"]


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("2", r"has no checkpoint 2; there are 4, 6$"),
        ("newest", r"--checkpoint=newest is not known; use latest, best or the number of a step$"),
    ],
)
def test_a_choice_that_is_not_there_is_one_line(three, which, message):
    with pytest.raises(InputError, match=message):
        load_policy(small_config(), three[0], which)


def test_no_best_and_no_checkpoint_at_all(trained, tmp_path):
    with pytest.raises(InputError, match=r"no checkpoint in .* is known to be the best; use --checkpoint=latest$"):
        load_policy(small_config(), trained[0], "best")
    with pytest.raises(InputError, match=r"has no checkpoint, so --checkpoint=best names none; train first$"):
        load_policy(small_config(), tmp_path, "best")


def test_a_chosen_checkpoint_that_is_damaged_is_not_replaced_by_another(three, tmp_path):
    shutil.copytree(three[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4" / "state")
    with pytest.raises(InputError, match=r"checkpoint 4 of .* is damaged \(.*; use --checkpoint=latest$"):
        load_policy(small_config(), tmp_path / "run", "best")


def test_a_checkpoint_of_another_model_is_refused(trained, tmp_path):
    workdir, _ = trained
    config = small_config()
    model, tokenizer = load_model(config.model.path)
    params = jax.device_get(params_of(model))
    layers = {name: weight[:2] for name, weight in params["layers"].items()}
    shallow = dataclasses.replace(model.config, n_layers=2)
    save_model(tmp_path / "shallow", shallow, {**params, "layers": layers}, tokenizer)
    config.model.path = str(tmp_path / "shallow")
    with pytest.raises(InputError, match="layers"):
        load_policy(config, workdir)
