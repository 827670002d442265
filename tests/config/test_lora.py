"""Knobs of an adapter: what is refused before anything is loaded, each in a line that names the mend."""

import pytest

from iiblpo_jax.config import validation
from iiblpo_jax.config.defaults import LORA_TARGETS
from iiblpo_jax.defaults import default_config


def mistakes(**values):
    config = default_config()
    for name, value in values.items():
        section, key = name.split("__")
        config[section][key] = value
    return validation.mistakes(config)


def test_an_adapter_is_off_until_its_rank_is_set():
    assert default_config().lora.rank == 0 and default_config().lora.targets == LORA_TARGETS
    assert mistakes() == mistakes(lora__rank=16, lora__base="int8", lora__targets=("q_proj", "v_proj")) == []


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"lora__rank": -1}, "lora.rank = -1; use 0 or more"),
        ({"lora__rank": 8, "lora__alpha": 0.0}, "lora.alpha = 0.0; use a number above 0"),
        ({"lora__rank": 8, "lora__targets": ()}, "lora.targets is empty, so nothing would be trained; name"),
        ({"lora__rank": 8, "lora__targets": ("q_prj",)}, "lora.targets contains 'q_prj' (did you mean q_proj?); use"),
        ({"lora__rank": 8, "lora__targets": ("q_proj", "q_proj")}, "lora.targets names a projection twice"),
        ({"lora__base": "int4"}, "lora.base = 'int4'"),
        ({"lora__base": "int8"}, "lora.base = int8 is of an adapter and lora.rank = 0 trains none; set lora.rank"),
        ({"lora__path": "runs/x"}, "lora.path = runs/x is of an adapter and lora.rank = 0 trains none"),
        (
            {"lora__rank": 8, "teacher__kind": "average", "distill__coef": 1.0},
            "teacher.kind = average averages whole weights and lora.rank = 8 trains an adapter; use teacher",
        ),
    ],
)
def test_what_makes_no_adapter_is_one_line(values, line):
    [found] = mistakes(**values)
    assert found.startswith(line) and "\n" not in found
