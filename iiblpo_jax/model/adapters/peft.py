"""Adapters in the format of PEFT: a folder with adapter_config.json and adapter_model.safetensors, [r,in] and [out,r].

A folder is somebody else's: nothing of it is believed before it has been compared with the model. What PEFT can say
and this cannot do (DoRA, rank-stabilised scales, ranks that differ between matrices, biases, whole modules beside the
adapters) is refused, since the numbers would mean something else.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from iiblpo_jax.common import json_input
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.defaults import LORA_TARGETS
from iiblpo_jax.devices.mesh import to_host
from iiblpo_jax.model.adapters.lora import LoRASpec, Projection, projections
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.files.safetensors import SafetensorsFile, write_safetensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# What PEFT has besides, by the values that leave an adapter what it is here.
_PLAIN = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "use_rslora": (False, None),
    "use_bdlora": (False, None),
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "modules_to_save": ([], None),
    "layers_to_transform": ([], None),
    "layers_pattern": ([], None),
    "layer_replication": ([], None),
    "target_parameters": ([], None),
    "exclude_modules": ([], None),
    "trainable_token_indices": ([], {}, None),
}
_MODULES = {name: "self_attn" if name[0] in "qkvo" else "mlp" for name in LORA_TARGETS}


def save_adapter(path: pathlib.Path | str, config: ModelConfig, spec: LoRASpec, adapter: dict, *, base: str) -> None:
    """Writes the folder; all processes take part, the first one writes where there are several.

    Args:
      path: of the folder; an adapter in it is replaced.
      config, spec, adapter: of the model, and the weights of a LoRA.
      base: what the folder says its base model is.
    """
    path, whole = pathlib.Path(path), to_host(adapter)
    path.mkdir(parents=True, exist_ok=True)
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(spec.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_dora": False,
        "use_rslora": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
    tensors = dict(_tensors(config, spec, whole))
    shapes = {name: x.shape for name, x in tensors.items()}
    write_safetensors(path / WEIGHTS, shapes, np.dtype(np.float32), tensors.values())
    (path / CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def load_adapter(path: pathlib.Path | str, config: ModelConfig, spec: LoRASpec) -> dict:
    """The weights of a LoRA, float32 numpy arrays, from a folder.

    Raises:
      InputError: no such adapter, damaged, another rank, alpha or targets than `spec`, of another model, or with what
        plain LoRA does not have.
    """
    path = pathlib.Path(path).expanduser()
    for name in (CONFIG, WEIGHTS):
        if not (path / name).is_file():
            raise InputError(f"lora.path = {path} has no {name}; give the folder that PEFT saved an adapter in")
    _check_config(json_input.load_object(path / CONFIG), path, spec)
    file = SafetensorsFile(path / WEIGHTS)
    wanted = {name: shape for name, shape, _ in _names(config, spec)}
    for name in [*wanted, *file.names()]:
        if name not in wanted or name not in file.names() or file.shape(name) != wanted[name]:
            there = f"of shape {file.shape(name)}" if name in file.names() else "absent"
            here = f"of shape {wanted[name]}" if name in wanted else "absent"
            raise InputError(f"lora.path = {path} is of another model: {name} is {there}, in this model {here}")
    return {key: _stacked(config, spec, key, file) for key in _keys(spec)}


def _check_config(found: dict[str, Any], path: pathlib.Path, spec: LoRASpec) -> None:
    for key, plain in _PLAIN.items():
        if found.get(key, plain[0]) not in plain:
            raise InputError(
                f"lora.path = {path} has {key} = {repr(found.get(key))[:60]}, which is not read; use a plain LoRA "
                "adapter"
            )
    targets = found.get("target_modules")
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets):
        raise InputError(f"lora.path = {path}: target_modules is no list of projections; use a plain LoRA adapter")
    pairs = (
        ("r", "rank", found.get("r"), spec.rank),
        ("lora_alpha", "alpha", found.get("lora_alpha"), spec.alpha),
        ("target_modules", "targets", sorted(targets), sorted(spec.targets)),
    )
    for theirs, key, there, here in pairs:
        if there != here:
            mend = ",".join(there) if isinstance(there, list) else there
            raise InputError(
                f"lora.path = {path} has {theirs} = {there} and the config lora.{key} = {here}; set lora.{key}={mend}"
            )


def _keys(spec: LoRASpec) -> list[str]:
    return [f"{name}_{side}" for name in LORA_TARGETS if name in spec.targets for side in "ab"]


def _names(config: ModelConfig, spec: LoRASpec) -> Iterator[tuple[str, tuple[int, int], tuple[int, str]]]:
    """(PEFT's name, its shape, (layer, our key)) of every tensor."""
    for layer in range(config.n_layers):
        for key in _keys(spec):
            name, side = key[:-2], key[-1]
            module = f"base_model.model.model.layers.{layer}.{_MODULES[name]}.{name}.lora_{side.upper()}.weight"
            yield module, _shape(projections(config)[name], spec.rank, side), (layer, key)


def _shape(one: Projection, rank: int, side: str) -> tuple[int, int]:
    return (rank, int(np.prod(one.inside))) if side == "a" else (int(np.prod(one.out)), rank)


def _tensors(config: ModelConfig, spec: LoRASpec, adapter: dict) -> Iterator[tuple[str, np.ndarray]]:
    for name, shape, (layer, key) in _names(config, spec):
        yield name, np.asarray(adapter[key][layer], np.float32).reshape(shape)


def _stacked(config: ModelConfig, spec: LoRASpec, key: str, file: SafetensorsFile) -> np.ndarray:
    one, side = projections(config)[key[:-2]], key[-1]
    shape = (spec.rank, *one.inside) if side == "a" else (*one.out, spec.rank)
    names = [name for name, _, (_, its) in _names(config, spec) if its == key]
    return np.stack([np.asarray(file.tensor(name), jnp.float32).reshape(shape) for name in names])
