"""A stored reward model comes back, and what does not fit is refused in one line."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.model.reward import make_head, typical
from iiblpo_jax.reward_models.storage import CARD, WEIGHTS, Fitted, Made, load_reward_model, save_reward_model

Z = 4


class Words:
    """A tokenizer as far as a digest of it goes."""

    def __init__(self, *texts, stop=0):
        self.stop_ids, self._texts = (stop,), texts

    def token_bytes(self):
        return [text.encode() for text in self._texts]


@pytest.fixture(scope="module")
def made(tiny_config, tiny_params):
    return Made(tiny_config, tiny_params, Words("", "a", "bc"))


@pytest.fixture(scope="module", params=["frozen", "trained"])
def stored(request, made, tmp_path_factory):
    """(folder, what was stored, kind)"""
    folder = tmp_path_factory.mktemp("stored") / "reward_model"
    rng = np.random.default_rng(0)
    trained = jax.tree.map(lambda w: w * 2, made.params) if request.param == "trained" else None
    covariance_ZZ = np.cov(rng.normal(size=(20, Z)), rowvar=False)
    fitted = Fitted(make_head(jax.random.key(0), width=16, latent=Z), rng.normal(size=Z), covariance_ZZ, trained)
    save_reward_model(folder, made, fitted, settings={"a": 1}, metrics={"b": 2.0})
    return folder, fitted, request.param


def test_it_comes_back(stored, made):
    folder, fitted, kind = stored
    found = load_reward_model(folder, made, z=Z, backbone=kind)
    jax.tree.map(np.testing.assert_array_equal, found.head, fitted.head)
    wanted = typical(np.float32(fitted.mean_Z), np.float32(fitted.covariance_ZZ))
    jax.tree.map(np.testing.assert_array_equal, found.typical, wanted)
    jax.tree.map(np.testing.assert_array_equal, found.backbone, fitted.backbone or made.params)
    assert json.loads((folder / CARD).read_text())["settings"] == {"a": 1}
    if kind == "trained":
        half = load_reward_model(folder, made, z=Z, backbone=kind, dtype="bfloat16")
        assert {str(w.dtype) for w in jax.tree.leaves(half.backbone)} == {"bfloat16"}


def test_what_does_not_fit_is_refused(stored, made):
    folder, _, kind = stored
    wider = dataclasses.replace(made.model, d_model=32)
    for other, knobs, message in (
        (made._replace(tokenizer=Words("", "a", "b")), {}, "of another tokenizer"),
        (made._replace(tokenizer=Words("", "a", "bc", stop=1)), {}, "of another tokenizer"),
        (made._replace(model=wider), {}, r"another architecture \(d_model 16, the policy has 32\)"),
        (made, {"z": 8}, r"made with reward_model\.z = 4 and the config says 8; set reward_model\.z=4"),
        (made, {"backbone": {"frozen": "trained", "trained": "frozen"}[kind]}, r"made with reward_model\.backbone = "),
    ):
        with pytest.raises(InputError, match=message):
            load_reward_model(folder, other, **({"z": Z, "backbone": kind} | knobs))
    changed = made._replace(params=made.params | {"embed": made.params["embed"] + 1})
    if kind == "frozen":
        with pytest.raises(InputError, match="a head for another model"):
            load_reward_model(folder, changed, z=Z, backbone=kind)
    else:  # it has a backbone of its own
        load_reward_model(folder, changed, z=Z, backbone=kind)


def test_damage_is_named(stored, made, tmp_path):
    folder, _, kind = stored
    knobs = {"z": Z, "backbone": kind}
    with pytest.raises(InputError, match="no reward model here; make it again"):
        load_reward_model(tmp_path, made, **knobs)
    card = (folder / CARD).read_text()
    weights = (folder / WEIGHTS).read_bytes()
    for text, bytes_, message in (
        ("[]", weights, "not a card of a reward model"),
        (card.replace('"format": 1', '"format": 9'), weights, "not a card of a reward model"),
        (card.replace('"architecture": {', '"architecture": 3, "x": {'), weights, "not a card of a reward model"),
        (card, weights[:-4], r"reward\.safetensors: cannot be read .*truncated"),
        (card, b"", r"reward\.safetensors: cannot be read"),
    ):
        (tmp_path / CARD).write_text(text)
        (tmp_path / WEIGHTS).write_bytes(bytes_)
        with pytest.raises(InputError, match=message):
            load_reward_model(tmp_path, made, **knobs)
