"""What each family calls things: Hugging Face config.json <-> ModelConfig, and tensor names <-> our parameter tree."""

import dataclasses
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from iiblpo_jax.common import json_input
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.model.config import Llama3Rope, ModelConfig
from iiblpo_jax.model.decoder import Decoder, params_of

ARCHITECTURES = {
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
}
# What a family means by a key its config.json leaves out.
HEAD_DIM = {"qwen3": 128}
KV_HEADS = {"qwen2": 32, "qwen3": 32, "mistral": 8}
SLIDING_WINDOW = {"mistral": 4096}
MAX_POSITIONS = {"llama": 2048, "mistral": 131_072}
# Ten times what the largest models have: a size beyond is damage, and would be believed before a tensor is looked at.
LARGEST_SIZE = 1 << 24
LARGEST = {"num_hidden_layers": 2048, "num_attention_heads": 4096, "head_dim": 8192, "max_position_embeddings": 1 << 31}

TOP_TENSORS = {"embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight", "head": "lm_head.weight"}
LAYER_TENSORS = {
    "attn_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "o": "self_attn.o_proj.weight",
    "q_bias": "self_attn.q_proj.bias",
    "k_bias": "self_attn.k_proj.bias",
    "v_bias": "self_attn.v_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}


# ---- config.json -> ModelConfig ------------------------------------------------------------------------------------


def read_config(path: pathlib.Path) -> ModelConfig:
    """The ModelConfig of a config.json.

    Raises:
      InputError: unreadable, another architecture, or a variant of it that the decoder does not have.
    """
    return config_from_hf(read_json(path), str(path))


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file; InputError if the file holds anything else."""
    return json_input.load_object(path)


def config_from_hf(hf: Mapping[str, Any], source: str) -> ModelConfig:
    """Translates a Hugging Face config (either spelling of the rope parameters); `source` names it in errors."""
    family = hf.get("model_type")
    if not isinstance(family, str) or family not in ARCHITECTURES:
        raise InputError(f"{source}: model_type {family!r} is not supported; use one of {', '.join(ARCHITECTURES)}")
    _refuse_variants(hf, family, source)
    width, heads = _integer(hf, "hidden_size", source), _integer(hf, "num_attention_heads", source)
    head_dim = _integer(hf, "head_dim", source, HEAD_DIM.get(family) or width // heads)
    kv_heads = _integer(hf, "num_key_value_heads", source, heads, absent=KV_HEADS.get(family))
    if heads % kv_heads or head_dim % 2:
        raise InputError(
            f"{source}: {heads} heads of width {head_dim} cannot share {kv_heads} key/value heads; copy the file again"
        )
    theta, scaling = _rope(hf, source)
    return ModelConfig(
        family=family,
        vocab_size=_integer(hf, "vocab_size", source),
        d_model=width,
        d_ff=_integer(hf, "intermediate_size", source),
        n_layers=_integer(hf, "num_hidden_layers", source),
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=_number(hf, "rms_norm_eps", source, 1e-6),
        tied_embeddings=bool(hf.get("tie_word_embeddings", False)),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        max_positions=_integer(hf, "max_position_embeddings", source, MAX_POSITIONS.get(family, 32_768)),
        sliding_window=_sliding_window(hf, family, source),
    )


def _integer(hf, key, source, default=None, *, absent=None) -> int:
    """A positive integer within LARGEST; `default` for null, `absent` (or else `default`) for a key left out."""
    value = hf.get(key, absent or default)
    if value in (None, 0) and default is not None:
        value = default
    if type(value) is not int or not 1 <= value <= LARGEST.get(key, LARGEST_SIZE):
        raise InputError(f"{source}: {key} is {repr(value)[:80]}; it must be a positive integer, copy the file again")
    return value


def _number(mapping, key, source, default=None) -> float:
    """A positive finite number."""
    value = mapping.get(key, default)
    if type(value) not in (int, float) or not 0 < value < 1e30 or not math.isfinite(value):
        raise InputError(f"{source}: {key} is {repr(value)[:80]}; it must be a positive number, copy the file again")
    return float(value)


def _refuse_variants(hf, family, source):
    if hf.get("quantization_config"):
        raise InputError(f"{source}: the weights are quantised; use the unquantised model or a GGUF file")
    if hf.get("hidden_act", "silu") not in ("silu", "swish"):
        raise InputError(f"{source}: hidden_act {hf['hidden_act']!r} is not supported; only silu is")
    for key in ("attention_bias", "mlp_bias"):
        if hf.get(key) and family != "qwen2":
            raise InputError(f"{source}: {key} is not supported for {family}; use a model without it")


def _rope(hf, source) -> tuple[float, Llama3Rope | None]:
    """(theta, scaling) from `rope_theta` + `rope_scaling`, from the newer `rope_parameters`, or from all of them.

    A file may have both spellings, and tools that change one of them leave the other behind. What one of them asks for
    counts, and where they ask for different things nobody can say which is meant.
    """
    found = [_rope_spelling(hf, key, source) for key in ("rope_parameters", "rope_scaling")]
    thetas = {_number(rope, "rope_theta", source) for rope in (hf, *found) if rope.get("rope_theta") is not None}
    scalings = {scaling for rope in found if (scaling := _scaling(rope, source)) is not None}
    for rope in (hf, *found):
        if rope.get("partial_rotary_factor") not in (None, 1.0):
            raise InputError(f"{source}: partial_rotary_factor is not supported; use a model that rotates whole heads")
    if len(thetas) > 1 or len(scalings) > 1:
        raise InputError(
            f"{source}: rope_theta, rope_scaling and rope_parameters contradict one another; delete those that are not "
            "the model's"
        )
    return next(iter(thetas), 10_000.0), next(iter(scalings), None)


def _rope_spelling(hf, key, source) -> Mapping[str, Any]:
    """The object under one of the two keys; empty where there is none."""
    rope = hf.get(key) or {}
    if not isinstance(rope, Mapping):
        raise InputError(f"{source}: {key} is not a JSON object; copy the file again")
    if any(isinstance(value, Mapping) for value in rope.values()):
        raise InputError(f"{source}: {key} that differ between layers are not supported; use another model")
    return rope


def _scaling(rope: Mapping[str, Any], source: str) -> Llama3Rope | None:
    kinds = [rope[key] for key in ("rope_type", "type") if rope.get(key) not in (None, "default")]
    if not kinds and rope.get("factor") in (None, 1):
        return None
    if unknown := [kind for kind in kinds or [None] if kind != "llama3"]:
        raise InputError(
            f"{source}: rope scaling {unknown[0]!r} is not supported; use a model with llama3 scaling or none"
        )
    for key in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"):
        if key not in rope:
            raise InputError(f"{source}: llama3 rope scaling lacks {key}; copy the file again")
    return Llama3Rope(
        factor=_number(rope, "factor", source),
        low_freq_factor=_number(rope, "low_freq_factor", source),
        high_freq_factor=_number(rope, "high_freq_factor", source),
        original_max_positions=int(_number(rope, "original_max_position_embeddings", source)),
    )


def _sliding_window(hf, family, source) -> int | None:
    window = hf.get("sliding_window", SLIDING_WINDOW.get(family))
    if family == "llama" or window is None or (family != "mistral" and not hf.get("use_sliding_window", False)):
        return None
    layers = hf["num_hidden_layers"]
    full = 0 if family == "mistral" else hf.get("max_window_layers", 28)
    if type(full) is not int or full < 0:
        raise InputError(f"{source}: max_window_layers is no number of layers; copy the file again")
    full = min(full, layers)
    kinds = hf.get("layer_types") or ["full_attention"] * full + ["sliding_attention"] * (layers - full)
    if not isinstance(kinds, list) or any(kind != kinds[0] for kind in kinds):
        raise InputError(f"{source}: layers that mix full and sliding attention are not supported; use another model")
    return _integer(hf, "sliding_window", source, window) if kinds[0] == "sliding_attention" else None


# ---- ModelConfig -> config.json ------------------------------------------------------------------------------------


def config_to_hf(config: ModelConfig, *, dtype: str = "float32") -> dict[str, Any]:
    """A config.json that old and new readers understand: the rope parameters are written in both spellings."""
    hf = {
        "architectures": [ARCHITECTURES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        "max_position_embeddings": config.max_positions,
        "rope_theta": config.rope_theta,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    scaling = config.rope_scaling
    if scaling is None:
        hf["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_theta}
    else:
        hf["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
        hf["rope_parameters"] = {**hf["rope_scaling"], "rope_theta": config.rope_theta}
    return hf | _attention_keys(config)


def _attention_keys(config: ModelConfig) -> dict[str, Any]:
    if config.family == "mistral":
        return {"sliding_window": config.sliding_window}
    if config.family == "llama":
        return {"attention_bias": False, "mlp_bias": False}
    sliding = config.sliding_window is not None
    keys = {
        "use_sliding_window": sliding,
        "sliding_window": config.sliding_window,
        "max_window_layers": 0 if sliding else config.n_layers,
    }
    return keys if config.family == "qwen2" else keys | {"attention_bias": False}


# ---- tensor names <-> parameter tree -------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorPlace:
    """Where a Hugging Face tensor lives in our tree.

    Attributes:
      key: our name of the tensor, of TOP_TENSORS or LAYER_TENSORS.
      path: keys into the nested dict of parameters.
      index: which part of that leaf it is; empty = all of it.
      shape: the tensor's own shape; the same numbers in the same order, with head axes merged.
    """

    key: str
    path: tuple[str, ...]
    index: tuple[int | slice, ...]
    shape: tuple[int, ...]

    def part(self, params: Mapping[str, Any]) -> Any:
        """This tensor's part of the parameter tree, in the shape it has there; a view of a numpy leaf."""
        leaf: Any = params
        for key in self.path:
            leaf = leaf[key]
        return leaf[self.index]

    def read(self, params: Mapping[str, Any]) -> Any:
        """This tensor, in its own shape."""
        return self.part(params).reshape(self.shape)

    def write(self, params: Mapping[str, Any], tensor: np.ndarray) -> None:
        """Stores the tensor in a tree of numpy arrays."""
        part = self.part(params)
        part[...] = tensor.reshape(part.shape)


def layer_parts(config: ModelConfig) -> dict[str, tuple[str, tuple[int | slice, ...]]]:
    """For every name of LAYER_TENSORS the leaf that holds it, and which part of one layer of that leaf it is."""
    r, heads = config.n_heads // config.n_kv_heads, slice(None)
    qkv = {"q": (heads, slice(r)), "k": (heads, r), "v": (heads, r + 1)}
    return {
        **{key: (key, ()) for key in ("attn_norm", "o", "mlp_norm", "down")},
        **{key: ("qkv", part) for key, part in qkv.items()},
        **{f"{key}_bias": ("qkv_bias", part) for key, part in qkv.items()},
        **{
            "q_norm": ("qk_norm", (0,)),
            "k_norm": ("qk_norm", (1,)),
            "gate": ("gate_up", (0,)),
            "up": ("gate_up", (1,)),
        },
    }


def param_shapes(config: ModelConfig) -> dict[str, Any]:
    """Shapes of the whole parameter tree, from the decoder itself."""
    abstract = jax.eval_shape(lambda: params_of(Decoder(config, rngs=nnx.Rngs(0))))
    return jax.tree.map(lambda leaf: leaf.shape, abstract)


def places(config: ModelConfig) -> dict[str, TensorPlace]:
    """Every tensor of the model's Hugging Face checkpoint, by name, in checkpoint order."""
    return dict(_places(config))


def _places(config: ModelConfig) -> Iterator[tuple[str, TensorPlace]]:
    shapes, parts = param_shapes(config), layer_parts(config)
    top = {
        key: TensorPlace(key=key, path=(key,), index=(), shape=shape)
        for key, shape in shapes.items()
        if key != "layers"
    }
    yield TOP_TENSORS["embed"], top.pop("embed")
    for layer in range(config.n_layers):
        for key, name in LAYER_TENSORS.items():
            leaf, part = parts[key]
            if leaf in shapes["layers"]:
                shape = _flat(key, part_shape(shapes["layers"][leaf][1:], part))
                yield (
                    f"model.layers.{layer}.{name}",
                    TensorPlace(key=key, path=("layers", leaf), index=(layer, *part), shape=shape),
                )
    for key, place in top.items():
        yield TOP_TENSORS[key], place


def part_shape(shape: tuple[int, ...], part: tuple[int | slice, ...]) -> tuple[int, ...]:
    """Shape of x[part] for x of a shape."""
    return np.broadcast_to(np.int8(0), shape)[part].shape


def _flat(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Hugging Face keeps heads and head width as one axis."""
    if key in ("q", "k", "v"):
        return math.prod(shape[:-1]), shape[-1]
    if key == "o":
        return shape[0], math.prod(shape[1:])
    return (math.prod(shape),) if key.endswith("bias") else shape
