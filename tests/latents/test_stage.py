"""The whole stage on a tiny model: trains once, is found again, refuses what does not match."""

import io
import json
import re

import jax
import numpy as np
import pytest
from rich.console import Console

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.defaults import default_config
from iiblpo_jax.latents import diagnostics, ensure_latents
from iiblpo_jax.latents.continuations import Question
from iiblpo_jax.model.decoder import params_of
from iiblpo_jax.model.steering.codes import Codes

Z = 4


@pytest.fixture(scope="module")
def config():
    config = default_config()
    config.rollout.update({"slots": 8, "refill_at": 2, "max_tokens": 8, "temperature": 1.0, "top_p": 1.0})
    config.latent.update({"z": Z, "hidden": 16, "samples": 2, "steps": 60, "batch": 32, "psa_steps": 20, "lr": 1e-3})
    config.train.prompts_per_step = 4
    return config


@pytest.fixture(scope="module")
def run(config, tiny_config, tiny_params, tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "latent"

    def questions():
        return [Question([3, 4 + i], [5, 6, 7 + i, 8, 1]) for i in range(8)]

    before = jax.tree.map(np.array, tiny_params)
    out = io.StringIO()
    latents = ensure_latents(
        config, directory, tiny_config, tiny_params, questions, stop_ids=(1,), console=Console(file=out, width=120)
    )
    jax.tree.map(np.testing.assert_array_equal, before, tiny_params)
    return directory, latents, out.getvalue()


def never():
    raise AssertionError("stored latents must not be trained again")


def test_it_trains_stores_and_tells(run, config):
    directory, (cvae, psa), text = run
    assert psa.gain.shape == (2, Z, 16) and np.abs(psa.gain[...]).max() > 0  # zero-init, so it has been trained
    assert cvae.latent == Z and np.abs(cvae.context_mean[...]).max() > 0
    metrics = json.loads((directory / "metrics.json").read_text())
    assert set(metrics) <= {name for name, _ in diagnostics.ROWS} and np.isfinite(list(metrics.values())).all()
    assert "latent/kl_next8" in metrics and "latent/elbo" in metrics
    # 8 prompts, 2 own + 2 gold each, one prompt held out: 28 + 4, less own samples of a single token.
    train, held_out = map(int, re.search(r"(\d+) continuations to train on, (\d+) held out", text).groups())
    assert 16 <= train <= 28 and 2 <= held_out <= 4
    assert diagnostics.verdict(metrics)[:30] in text
    assert json.loads((directory / "latent.json").read_text())["settings"]["latent"]["z"] == Z


def test_it_is_found_again(run, config, tiny_config, tiny_params):
    directory, latents, _ = run
    again = ensure_latents(config, directory, tiny_config, tiny_params, never, stop_ids=(1,))
    for a, b in zip(latents, again, strict=True):
        jax.tree.map(np.testing.assert_array_equal, params_of(a), params_of(b))


def test_a_config_that_does_not_match_is_refused(run, config, tiny_config, tiny_params):
    directory = run[0]
    for section, name, value, message in (
        ("latent", "z", 8, r"latent\.z 4, the config says 8"),
        ("psa", "layers", "1", r"psa\.layers 2, the config says 1"),
        ("latent", "z", 0, r"latent\.z = 0"),
        ("psa", "layers", "3", "the model has 2 layers"),
    ):
        other = config.copy_and_resolve_references()
        other[section][name] = value
        with pytest.raises(InputError, match=message):
            ensure_latents(other, directory, tiny_config, tiny_params, never, stop_ids=(1,))
    params = {**tiny_params, "embed": tiny_params["embed"] + 1}
    with pytest.raises(InputError, match="another model"):
        ensure_latents(config, directory, tiny_config, params, never, stop_ids=(1,))


def test_codes_go_through_the_same_stage(config, tiny_config, tiny_params, tmp_path):
    """Own samples alone, cut where branches would be; what is stored is found again as codes, and by its own name."""
    config = config.copy_and_resolve_references()
    config.latent.update({"kind": "codes", "window": 2, "prior_weight": 0.5, "siblings": "stratified"})

    def questions():
        return [Question([3, 4 + i], [5, 6, 7 + i, 8, 1]) for i in range(8)]

    arguments = config, tmp_path / "latent", tiny_config, tiny_params
    out = io.StringIO()
    codes, psa = ensure_latents(*arguments, questions, stop_ids=(1,), console=Console(file=out, width=120))
    assert isinstance(codes, Codes) and codes.latent == Z and np.abs(psa.value[...]).max() > 0
    metrics = json.loads((tmp_path / "latent" / "metrics.json").read_text())
    assert 0 <= metrics["latent/code_entropy"] <= np.log(Z) and "latent/elbo" not in metrics
    train, held_out = map(int, re.search(r"(\d+) continuations to train on, (\d+) held out", out.getvalue()).groups())
    assert train + held_out <= 16  # 8 prompts, 2 own samples each, no gold
    jax.tree.map(
        np.testing.assert_array_equal, params_of(codes), params_of(ensure_latents(*arguments, never, stop_ids=(1,))[0])
    )
    config.latent.kind = "gaussian"
    with pytest.raises(InputError, match=r"made with latent\.kind codes, the config says gaussian"):
        ensure_latents(*arguments, never, stop_ids=(1,))
