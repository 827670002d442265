"""The reward-model stage on the embedded model, killed and resumed, and a run that learns from what it makes."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from iiblpo_jax import reward_model
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.defaults import default_config, plain_grpo
from iiblpo_jax.reward_models.storage import WEIGHTS
from iiblpo_jax.run import reward_model as stage
from iiblpo_jax.run.setup import set_up
from iiblpo_jax.run.trainer import Trainer

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def config():
    config = plain_grpo(default_config(), samples=4)
    config.task.options = {"k_min": 2, "k_max": 3, "train_size": 64, "heldout_size": 16}
    config.rollout.update({"slots": 16, "refill_at": 4, "max_prompt": 8, "max_tokens": 20, "unroll": False})
    config.rollout.update({"top_p": 1.0, "temperature": 1.3})
    config.reward_model.update({"prompts": 16, "samples": 4, "z": 3, "batch": 4, "epochs": 2, "lr": 1e-3})
    config.train.prompts_per_step, config.update.minibatches, config.optim.lr = 8, 1, 1e-4
    config.checkpoint.every = 2
    return config


@pytest.fixture(scope="module")
def made(config, tmp_path_factory):
    """(workdir, what was said)"""
    workdir = tmp_path_factory.mktemp("judge")
    assert reward_model.main(config, workdir) == 0
    return workdir


def test_a_killed_stage_goes_on_to_the_same_weights(config, made, tmp_path, capsys):
    wanted = (made / "reward_model" / WEIGHTS).read_bytes()
    metrics = json.loads((made / "reward_model" / "metrics.json").read_text())
    assert metrics["reward_model/pairs"] >= 8 and 0 <= metrics["reward_model/held_out/accuracy"] <= 1
    assert 1 < metrics["reward_model/freedom"] <= 3 and not (made / "reward_model.partial").exists()

    setup, folder, asked = set_up(config), tmp_path / "reward_model", []
    stop = lambda: asked.append(1) or len(asked) == 3  # noqa: E731
    assert stage.ensure_reward_model(setup, folder, console=QUIET, stop=stop) is None
    assert (tmp_path / "reward_model.partial" / "checkpoints" / "3").exists() and not folder.exists()
    config.reward_model.beta = 0.2
    with pytest.raises(InputError, match=r"was begun with another reward_model\.beta; set it back, or delete"):
        stage.ensure_reward_model(setup, folder, console=QUIET)
    config.reward_model.beta = 0.1
    found = stage.ensure_reward_model(setup, folder, console=QUIET)
    assert (folder / WEIGHTS).read_bytes() == wanted and found == pytest.approx(metrics)

    # and is found, by the verb, when it is there
    assert reward_model.main(config, tmp_path) == 0
    assert "held_out/accuracy" in capsys.readouterr().out and (folder / WEIGHTS).read_bytes() == wanted


def test_a_run_learns_from_it(config, made, tmp_path):
    """The first update is at ratio 1; the verifier's reward is reported beside the model's."""
    config = config.copy_and_resolve_references()
    config.reward.update({"model": str(made / "reward_model"), "ibl_coef": 0.1})
    trainer = Trainer(config, tmp_path, console=QUIET)
    metrics, columns = trainer.step(1)
    trainer.close()
    assert metrics["update/ratio_mean"] == pytest.approx(1, abs=1e-4) and metrics["update/skipped"] == 0
    assert metrics["reward/true"] == metrics["reward/mean"] == np.mean(columns["reward"])
    paid = metrics["reward/proxy"] - 0.1 * metrics["reward/distance"]
    assert metrics["reward/paid"] == pytest.approx(paid, abs=1e-5) and 0 <= metrics["reward/mop"] < 0.7
    # the policy is still the one whose latents are typical: sqrt of the 3 degrees of freedom, about
    assert 0.8 < metrics["reward/distance"] < 2.5
    np.testing.assert_allclose(np.mean(columns["proxy"]), metrics["reward/proxy"], rtol=1e-5)


def test_what_cannot_be_used_is_refused_before_anything_is_compiled(config, made, tmp_path):
    config = config.copy_and_resolve_references()
    config.reward.model, config.reward_model.z = str(made / "reward_model"), 4
    with pytest.raises(InputError, match=r"made with reward_model\.z = 3 and the config says 4; set reward_model\.z=3"):
        Trainer(config, tmp_path, console=QUIET)
    config.reward.model = str(tmp_path)
    with pytest.raises(InputError, match="no reward model here"):
        Trainer(config, tmp_path, console=QUIET)
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "1+1=", "chosen": "2"}\n')
    config.reward_model.pairs = str(tmp_path / "pairs.jsonl")
    with pytest.raises(InputError, match=r"pairs\.jsonl row 1: no column rejected"):
        stage.ensure_reward_model(set_up(config), tmp_path / "new", console=Console(file=io.StringIO()))
