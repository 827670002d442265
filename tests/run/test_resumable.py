"""Checkpoints that a config cannot go on from are named before anything is trained."""

import dataclasses

import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.defaults import default_config
from iiblpo_jax.run.resumable import check_resumable


def config(**latent):
    made = default_config()
    made.latent.update({"z": 16} | latent)
    made.psa.layers = "2"
    return made


def newest(*, latent="gaussian", gain=(2, 16, 8), model="abc"):
    arrays = {"params.policy.embed": [[23, 8], "float32"]}
    arrays |= {"params.psa.gain": [list(gain), "float32"]} if gain else {}
    return {"step": 7, "arrays": arrays, "extra": {"model": model} | ({"latent": latent} if latent else {})}


@pytest.mark.parametrize(
    ("made", "found"),
    [
        (config(), newest()),
        (config(kind="codes"), newest(latent="codes")),
        (config(kind="codes"), newest(latent=None)),  # of an earlier version, which said nothing of the kind
        (config(z=0), newest(gain=None)),
        (config(z=0, kind="codes"), newest(gain=None)),  # nobody uses a latent
    ],
)
def test_the_same_latent_goes_on(tiny_config, made, found):
    check_resumable(found, made, tiny_config, "abc")


@pytest.mark.parametrize(
    ("made", "found", "trained", "wanted"),
    [
        (
            config(z=32),
            newest(),
            "latent.kind = gaussian, latent.z = 16, psa.layers = 2",
            "latent.z = 32, psa.layers = 2",
        ),
        (config(), newest(gain=(1, 16, 8)), "latent.z = 16, psa.layers = 1", "latent.z = 16, psa.layers = 2"),
        (config(kind="codes"), newest(), "latent.kind = gaussian, latent.z", "latent.kind = codes, latent.z = 16"),
        (config(z=0), newest(), "latent.z = 16, psa.layers = 2", "no latent"),
        (config(), newest(gain=None), "no latent", "latent.z = 16, psa.layers = 2"),
    ],
)
def test_another_latent_is_refused_with_what_helps(tiny_config, made, found, trained, wanted):
    with pytest.raises(InputError) as caught:
        check_resumable(found, made, tiny_config, "abc")
    line = str(caught.value)
    before, after = line.split(" and the config says ")
    assert before.startswith("checkpoint 7 of this workdir was trained with ") and trained in before
    assert wanted in after and after.endswith("set it back, or use another --workdir") and "delete" not in line


def test_another_number_of_codes_is_refused(tiny_config):
    with pytest.raises(
        InputError, match=r"vocabulary of 23, codes included, .* codes\.n = 0 one of 19; set codes\.n back"
    ):
        check_resumable(newest(), config(), dataclasses.replace(tiny_config, vocab_size=19), "abc")


def test_another_model_is_refused(tiny_config):
    with pytest.raises(InputError, match=r"grew from another model than package:.*; use the model the run began with"):
        check_resumable(newest(model="other"), config(), tiny_config, "abc")
