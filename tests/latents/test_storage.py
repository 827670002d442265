"""Stored latents come back bit for bit, for their own model only."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from iiblpo_jax.common import folders
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.latents import storage
from iiblpo_jax.latents.storage import has_latents, load_latents, save_latents
from iiblpo_jax.model.decoder import params_of
from iiblpo_jax.model.files.fingerprint import fingerprint
from iiblpo_jax.model.steering.codes import Codes
from iiblpo_jax.model.steering.cvae import CVAE
from iiblpo_jax.model.steering.psa import PSA

Z = 4


@pytest.fixture
def latents(tiny_config):
    cvae, psa = CVAE(16, Z, 8, rngs=nnx.Rngs(0)), PSA(tiny_config, Z, 2, rngs=nnx.Rngs(1))
    cvae.offset[...] = jnp.arange(Z) / 7
    cvae.context_std[...] = jnp.linspace(0.1, 3, 16)
    return cvae, psa


@pytest.fixture
def stored(tmp_path, tiny_config, tiny_params, latents):
    directory = tmp_path / "run" / "latent"
    save_latents(directory, tiny_config, tiny_params, *latents, settings={"z": Z}, metrics={"latent/kl": 1.5})
    return directory


def test_round_trip_is_bit_exact(stored, tiny_config, tiny_params, latents):
    loaded = load_latents(stored, tiny_config, tiny_params, z=Z, n_injected=2)
    for before, after in zip(latents, loaded, strict=True):
        jax.tree.map(np.testing.assert_array_equal, params_of(before), params_of(after))
    context, keys = jnp.ones((3, 16)), jax.random.split(jax.random.key(0), 3)
    np.testing.assert_array_equal(latents[0].sample_prior(context, keys), loaded[0].sample_prior(context, keys))
    assert json.loads((stored / "metrics.json").read_text()) == {"latent/kl": 1.5}
    card = json.loads((stored / "latent.json").read_text())
    assert (card["width"], card["z"], card["hidden"], card["layers"]) == (16, Z, 8, 2)


def test_codes_come_back_as_codes_and_no_other_kind(tmp_path, tiny_config, tiny_params):
    codes, psa = Codes(16, Z, 8, rngs=nnx.Rngs(0)), PSA(tiny_config, Z, 2, rngs=nnx.Rngs(1))
    codes.centres[...] = jnp.arange(Z * 16.0).reshape(Z, 16)
    save_latents(tmp_path / "latent", tiny_config, tiny_params, codes, psa, settings={}, metrics={})
    again, _ = load_latents(tmp_path / "latent", tiny_config, tiny_params, kind="codes")
    assert isinstance(again, Codes)
    jax.tree.map(np.testing.assert_array_equal, params_of(codes), params_of(again))
    with pytest.raises(InputError, match=r"made with latent\.kind codes, the config says gaussian; delete"):
        load_latents(tmp_path / "latent", tiny_config, tiny_params, kind="gaussian")


def test_a_card_without_a_kind_is_gaussian(stored, tiny_config, tiny_params):
    card = json.loads((stored / storage.CARD).read_text())
    del card["kind"]
    (stored / storage.CARD).write_text(json.dumps(card | {"format": 1}))
    assert isinstance(load_latents(stored, tiny_config, tiny_params, kind="gaussian")[0], CVAE)
    (stored / storage.CARD).write_text(json.dumps(card | {"format": 2, "kind": "other"}))
    with pytest.raises(InputError, match="not a card of latents"):
        load_latents(stored, tiny_config, tiny_params)


def test_only_the_first_process_writes(tmp_path, tiny_config, tiny_params, latents, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    save_latents(tmp_path / "latent", tiny_config, tiny_params, *latents, settings={}, metrics={})
    assert not any(tmp_path.iterdir())


def test_latents_of_another_model_are_refused(stored, tiny_config, tiny_params):
    other = {**tiny_params, "final_norm": tiny_params["final_norm"] * 1.01}
    with pytest.raises(InputError, match="latents of another model"):
        load_latents(stored, tiny_config, other)
    with pytest.raises(InputError, match="latents of another model"):
        load_latents(stored, dataclasses.replace(tiny_config, rope_theta=5e5), tiny_params)


def test_another_shape_is_refused_and_names_the_knob(stored, tiny_config, tiny_params):
    with pytest.raises(InputError, match=r"latent\.z 4, the config says 8"):
        load_latents(stored, tiny_config, tiny_params, z=8)
    with pytest.raises(InputError, match=r"psa\.layers 2, the config says 1"):
        load_latents(stored, tiny_config, tiny_params, n_injected=1)


def test_nothing_there_and_damage_are_one_line(tmp_path, stored, tiny_config, tiny_params):
    with pytest.raises(InputError, match="no latents here"):
        load_latents(tmp_path / "nowhere", tiny_config, tiny_params)
    whole = (stored / storage.WEIGHTS).read_bytes()
    (stored / storage.WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        load_latents(stored, tiny_config, tiny_params)
    (stored / storage.CARD).write_text('{"z":')
    with pytest.raises(InputError, match="not JSON"):
        load_latents(stored, tiny_config, tiny_params)


def test_saving_replaces_and_leaves_nothing_behind(stored, tiny_config, tiny_params, latents):
    save_latents(stored, tiny_config, tiny_params, *latents, settings={}, metrics={"latent/kl": 2.0})
    assert json.loads((stored / "metrics.json").read_text()) == {"latent/kl": 2.0}
    assert [p.name for p in stored.parent.iterdir()] == ["latent"]
    assert {p.name for p in stored.iterdir()} == {"latent.json", "latent.safetensors", "metrics.json"}


def test_a_save_that_dies_leaves_the_old_one(stored, tiny_config, tiny_params, latents, monkeypatch):
    def die(*_):
        raise OSError("disk full")

    monkeypatch.setattr(folders, "save_file", die)
    with pytest.raises(OSError, match="disk full"):
        save_latents(stored, tiny_config, tiny_params, *latents, settings={}, metrics={})
    assert has_latents(stored) and [p.name for p in stored.parent.iterdir()] == ["latent"]
    load_latents(stored, tiny_config, tiny_params)


def test_fingerprint_sees_every_weight_and_not_the_dtype(tiny_config, tiny_params):
    base = fingerprint(tiny_config, tiny_params)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny_params)
    assert fingerprint(tiny_config, rounded) == base
    assert fingerprint(tiny_config, jax.tree.map(np.asarray, tiny_params)) == base
    leaves, tree = jax.tree.flatten(tiny_params)
    for i, leaf in enumerate(leaves):
        changed = [*leaves[:i], leaf * 1.05, *leaves[i + 1 :]]
        assert fingerprint(tiny_config, jax.tree.unflatten(tree, changed)) != base
