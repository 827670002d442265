"""The latent verb on the embedded model."""

import json

import pytest

from iiblpo_jax import latent
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.defaults import default_config
from iiblpo_jax.latents import storage


@pytest.fixture(scope="module")
def config():
    config = default_config()
    config["rollout"].update({"slots": 16, "refill_at": 4, "max_prompt": 8, "max_tokens": 30, "top_p": 1.0})
    config["latent"].update({"z": 4, "hidden": 16, "prompts": 16, "samples": 1, "steps": 5, "psa_steps": 2})
    config["train"].update({"prompts_per_step": 16})
    return config


def test_it_trains_once_then_finds_and_refuses(config, tmp_path, capsys):
    latent.main(config, tmp_path)
    assert "stored in" in capsys.readouterr().out
    assert json.loads((tmp_path / "config.json").read_text())["latent"]["z"] == 4
    assert json.loads((tmp_path / "latent" / "latent.json").read_text())["layers"] == 3  # psa.layers = all

    before = (tmp_path / "latent" / storage.WEIGHTS).read_bytes()
    latent.main(config, tmp_path)
    out = capsys.readouterr().out
    assert "found in" in out and "latent/kl_between" in out
    assert (tmp_path / "latent" / storage.WEIGHTS).read_bytes() == before
    latent.main(config, tmp_path / "again")
    assert (tmp_path / "again" / "latent" / storage.WEIGHTS).read_bytes() == before  # a function of the config alone

    other = config.copy_and_resolve_references()
    other.latent.z = 8
    with pytest.raises(InputError, match=r"latent\.z"):
        latent.main(other, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["latent"]["z"] == 4  # a refused config is not stored


MESH = """
import sys
from pathlib import Path
import jax
from iiblpo_jax import latent
from iiblpo_jax.defaults import default_config
from iiblpo_jax.run import setup

config = default_config()
config.latent.z, config.mesh.fsdp, config.mesh.data = 4, 2, 1
config.rollout.update({"max_prompt": 8, "max_tokens": 30})

class Seen(Exception):
    pass

def stage(config, directory, model, params, questions, *, mesh, **rest):
    assert dict(mesh.shape) == {"data": 1, "fsdp": 2, "sequence": 1, "tensor": 1}
    assert params["embed"].sharding.shard_shape(params["embed"].shape)[1] * 2 == params["embed"].shape[1]
    raise Seen

setup.ensure_latents = stage
try:
    latent.main(config, Path(sys.argv[1]))
except Seen:
    print("seen")
"""


def test_it_works_on_the_mesh_of_the_config(run_script, tmp_path):
    assert "seen" in run_script(MESH, str(tmp_path), devices=2)
