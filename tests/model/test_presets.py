"""Presets against the parameter counts their authors publish."""

import math

import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.model.files.families import places
from iiblpo_jax.model.files.loading import load_config
from iiblpo_jax.model.presets import PRESETS

PARAMETERS = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-math-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "llama-2-7b": 6_738_415_616,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "mistral-7b-v0.1": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    "smollm2-135m": 134_515_008,
}


@pytest.mark.parametrize("name", PRESETS)
def test_parameter_count(name):
    config = load_config(f"preset:{name}")
    assert sum(math.prod(place.shape) for place in places(config).values()) == PARAMETERS[name]


def test_unknown_preset():
    with pytest.raises(InputError, match=r"no preset 'qwen9'; use one of qwen2\.5-0\.5b"):
        load_config("preset:qwen9")
