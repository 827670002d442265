"""Adapters in files: PEFT reads what is written here and computes the same; what it cannot mean here is refused."""

import dataclasses
import json

import numpy as np
import pytest
from flax import nnx

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.defaults import LORA_TARGETS
from iiblpo_jax.model.adapters.adapted import Adapted, bound, stored
from iiblpo_jax.model.adapters.lora import LoRA, LoRASpec
from iiblpo_jax.model.adapters.peft import CONFIG, WEIGHTS, load_adapter, save_adapter
from iiblpo_jax.model.decoder import logits, params_of
from iiblpo_jax.model.files import families
from iiblpo_jax.model.files.safetensors import SafetensorsFile

SPEC = LoRASpec(rank=3, alpha=6.0, targets=LORA_TARGETS)


@pytest.fixture(scope="module")
def adapter(tiny_config):
    weights = params_of(LoRA(tiny_config, SPEC, rngs=nnx.Rngs(1)))
    rng = np.random.default_rng(0)
    return {name: np.asarray(w) + rng.normal(0, 0.1, w.shape).astype(np.float32) for name, w in weights.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_config, adapter):
    path = tmp_path_factory.mktemp("peft")
    save_adapter(path, tiny_config, SPEC, adapter, base="tiny")
    return path


def test_what_is_written_comes_back_to_the_bit(tiny_config, adapter, folder):
    found = load_adapter(folder, tiny_config, SPEC)
    assert found.keys() == adapter.keys()
    for name, w in adapter.items():
        np.testing.assert_array_equal(found[name], w)


def test_peft_computes_the_same(tiny_config, tiny_params, adapter, folder):
    torch, peft, transformers = (pytest.importorskip(name) for name in ("torch", "peft", "transformers"))
    config = transformers.Qwen3Config(**families.config_to_hf(tiny_config), attn_implementation="eager")
    theirs = transformers.Qwen3ForCausalLM(config).eval()
    tensors = {name: np.asarray(place.read(tiny_params)) for name, place in families.places(tiny_config).items()}
    theirs.load_state_dict({name: torch.tensor(x) for name, x in tensors.items()}, strict=False)  # the head is tied
    theirs.tie_weights()
    tokens_BT = np.array([[3, 7, 1, 9, 4], [2, 2, 8, 5, 6]])
    with torch.no_grad():
        plain = theirs(torch.tensor(tokens_BT)).logits.numpy()
        truth = peft.PeftModel.from_pretrained(theirs, str(folder))(torch.tensor(tokens_BT)).logits.numpy()
    base = stored(tiny_params, "float32")
    mine = bound(tiny_config, Adapted(base=base, adapter=adapter, model=tiny_config, spec=SPEC))
    assert np.abs(truth - plain).max() > 0.1
    np.testing.assert_allclose(logits(mine, tokens_BT), truth, atol=1e-5 * np.abs(truth).max())


def changed(folder, to, **values):
    """A copy of the folder with other values in its description; None leaves one out."""
    found = json.loads((folder / CONFIG).read_text()) | values
    (to / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
    (to / CONFIG).write_text(json.dumps({key: value for key, value in found.items() if value is not None}))
    return to


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"r": 4}, r"has r = 4 and the config lora\.rank = 3; set lora\.rank=4"),
        ({"lora_alpha": 16}, r"has lora_alpha = 16 and the config lora\.alpha = 6\.0; set lora\.alpha=16"),
        ({"target_modules": ["v_proj", "q_proj"]}, r"set lora\.targets=q_proj,v_proj"),
        ({"target_modules": "all-linear"}, "target_modules is no list of projections"),
        ({"use_dora": True}, "has use_dora = True, which is not read; use a plain LoRA adapter"),
        ({"use_rslora": True}, "has use_rslora = True"),
        ({"rank_pattern": {"q_proj": 8}}, "has rank_pattern = "),
        ({"bias": "all"}, "has bias = 'all'"),
        ({"peft_type": "IA3"}, "has peft_type = 'IA3'"),
    ],
)
def test_another_adapter_is_one_line(tmp_path, tiny_config, folder, values, line):
    with pytest.raises(InputError, match=line) as caught:
        load_adapter(changed(folder, tmp_path, **values), tiny_config, SPEC)
    assert str(caught.value).startswith(f"lora.path = {tmp_path}") and "\n" not in str(caught.value)


def test_one_of_another_model_is_one_line(tmp_path, tiny_config, adapter):
    deeper = dataclasses.replace(tiny_config, n_layers=3)
    save_adapter(tmp_path, deeper, SPEC, {name: w[[0, 1, 1]] for name, w in adapter.items()}, base="")
    with pytest.raises(InputError, match=r"is of another model: .*layers\.2\..* is of shape .*, in this model absent"):
        load_adapter(tmp_path, tiny_config, SPEC)
    wider = dataclasses.replace(tiny_config, d_ff=48)
    save_adapter(tmp_path, tiny_config, SPEC, adapter, base="")
    with pytest.raises(InputError, match=r"gate_proj\.lora_B\.weight is of shape \(32, 3\), in this model of shape"):
        load_adapter(tmp_path, wider, SPEC)


def test_no_folder_and_no_file_are_one_line(tmp_path, tiny_config, folder):
    with pytest.raises(InputError, match=r"lora\.path = /nowhere has no adapter_config\.json; give the folder"):
        load_adapter("/nowhere", tiny_config, SPEC)
    (changed(folder, tmp_path) / WEIGHTS).unlink()
    with pytest.raises(InputError, match=r"has no adapter_model\.safetensors"):
        load_adapter(tmp_path, tiny_config, SPEC)


def test_names_and_shapes_are_those_of_peft(tiny_config, folder):
    file = SafetensorsFile(folder / WEIGHTS)
    assert len(file.names()) == tiny_config.n_layers * 7 * 2
    q = "base_model.model.model.layers.1.self_attn.q_proj.lora_"
    assert file.shape(f"{q}A.weight") == (3, 16) and file.shape(f"{q}B.weight") == (32, 3)
    assert file.shape("base_model.model.model.layers.0.mlp.down_proj.lora_A.weight") == (3, 32)
