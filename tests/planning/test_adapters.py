"""What an adapter saves, counted by hand: bytes that live through a step, and FLOPs of the update."""

import jax
import pytest

from iiblpo_jax.config.defaults import LORA_TARGETS
from iiblpo_jax.defaults import default_config
from iiblpo_jax.model.presets import PRESETS
from iiblpo_jax.planning import plan as planning
from iiblpo_jax.planning.roofline import CHIPS, Lengths, trained_weights

MODEL = PRESETS["qwen2.5-7b"]
MATRICES = 28 * (3584 * (28 + 4 + 4 + 28) * 128 + 3 * 3584 * 18944)
CHANNELS = 28 * (36 * 128 + 3584 + 2 * 18944 + 3584)  # outputs of q|k|v, o, gate and up, down
REST = 2 * 152064 * 3584 + 28 * (2 * 3584 + 36 * 128) + 3584  # embedding and head, norms and biases
ADAPTER = 28 * 16 * (3584 + 28 * 128 + 2 * (3584 + 4 * 128) + 28 * 128 + 3584 + 3 * (3584 + 18944))


def plan(**lora):
    config = default_config()
    config.lora.update(lora)
    lengths = Lengths(prompt=100, response=200)
    return planning.make_plan(config, MODEL, jax.devices()[:1], topology="cpu", lengths=lengths, formulas=True)


@pytest.fixture(scope="module")
def whole():
    return plan()


@pytest.mark.parametrize(
    ("base", "size"),
    [
        ("float32", 4 * (MATRICES + REST)),
        ("bfloat16", 2 * (MATRICES + REST)),
        ("int8", MATRICES + 4 * CHANNELS + 2 * REST),
    ],
)
def test_one_base_is_policy_and_reference(whole, base, size):
    found = plan(rank=16, base=base).resident
    assert found["base, reference too"] == size and "reference" not in found
    assert found["params"] == 4 * ADAPTER and found["optimizer"] == pytest.approx(8 * ADAPTER, abs=64)
    assert found["KV cache"] == whole.resident["KV cache"]
    assert whole.resident["params"] == whole.resident["reference"] == 4 * (MATRICES + REST)


def test_it_fits_where_the_whole_model_does_not(whole):
    def lives(resident):
        return sum(resident.values()) - resident["KV cache"]

    beside = lives(plan(rank=16, base="int8").resident)
    assert beside < CHIPS["v5e"].memory and lives(whole.resident) > CHIPS["v5p"].memory


def test_a_backward_of_frozen_weights_is_one_forward(whole):
    found = plan(rank=16).work["update"]
    # with a forward for pi_old and the recomputed one: 1 + (1 + 2 + 1) forwards of the whole model, and 1 + (1 + 1 + 1)
    assert found.flops == pytest.approx(whole.work["update"].flops * 4 / 5)
    assert found.useful == pytest.approx(whole.work["update"].useful * 3 / 4)
    assert found.bytes < whole.work["update"].bytes


def test_targets_are_what_is_trained():
    config = default_config()
    config.lora.rank, config.lora.targets = 16, LORA_TARGETS
    assert trained_weights(config, MODEL) == ADAPTER
    config.lora.targets = ("down_proj",)
    assert trained_weights(config, MODEL) == 28 * 16 * (3584 + 18944)
