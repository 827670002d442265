"""A model to disk as a standard Hugging Face directory, which transformers and every serving tool load.

The directory is written beside its final place and renamed into it, so it is there whole or not at all.
"""

import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.devices.mesh import to_host
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.files import families
from iiblpo_jax.model.files.loading import GENERATION, INDEX, check_tokenizer
from iiblpo_jax.model.files.safetensors import DTYPES, PRODUCER, SafetensorsFile, write_safetensors
from iiblpo_jax.model.tokens.tokenizer import Tokenizer

SHARD_BYTES = 5_000_000_000


def save_model(
    path: str | pathlib.Path,
    config: ModelConfig,
    params: Mapping[str, Any],
    tokenizer: Tokenizer,
    *,
    dtype: Any = jnp.float32,
    generation: Mapping[str, Any] = MappingProxyType({}),
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes config.json, generation_config.json, the weights and the tokenizer's files.

    In a run of several processes all gather, tensor by tensor, the first one writes, and all return when it has.

    Args:
      path: the directory to make. An earlier export there is replaced; anything else is left alone.
      config: the architecture.
      params: the tree of `decoder.params_of`, numpy or jax arrays; fetched tensor by tensor.
      tokenizer: the model's own.
      dtype: float32, bfloat16 or float16; float32 keeps float32 weights bit for bit.
      generation: the generation_config.json of the model it came from: its sampling defaults are kept, its token ids
        are those of the tokenizer.
      shard_bytes: weights beyond this go into several files.

    Raises:
      InputError: `path` holds something else, a dtype that is none of these, or the tokenizer of another model.
    """
    path = pathlib.Path(path).expanduser().absolute()
    dtype = jnp.dtype(dtype)
    if dtype not in DTYPES.values():
        raise InputError(f"cannot export as {dtype.name}; use float32, bfloat16 or float16")
    check_tokenizer(tokenizer, config)
    check_target(path)
    if jax.process_index() == 0:
        _write_directory(path, config, params, tokenizer, dtype, generation, shard_bytes)
    else:  # its part in the gathers
        places = families.places(config)
        for _ in _fetch(places, places, params, dtype):
            pass
    multihost_utils.sync_global_devices("model saved")


def _write_directory(path, config, params, tokenizer, dtype, generation, shard_bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        tokenizer.save(partial)
        _write_json(partial / "config.json", families.config_to_hf(config, dtype=dtype.name) | _end_tokens(tokenizer))
        _write_json(partial / GENERATION, dict(generation) | _end_tokens(tokenizer))
        _write_weights(partial, config, params, dtype, shard_bytes)
        _move_into_place(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_target(path: str | pathlib.Path) -> None:
    """InputError if exporting to `path` would destroy anything but an earlier export; worth asking before training."""
    path = pathlib.Path(path)
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() and not _is_export(path):
        raise InputError(f"{path} exists and is not an earlier export; choose another directory or remove it")


def _is_export(path: pathlib.Path) -> bool:
    weights = next(path.glob("model*.safetensors"), None) if path.is_dir() else None
    try:
        return weights is not None and SafetensorsFile(weights).metadata.get("producer") == PRODUCER
    except InputError:  # damaged, so nobody can say whose it is
        return False


def _move_into_place(partial: pathlib.Path, path: pathlib.Path) -> None:
    old = path.with_name(f".{path.name}.old")
    if path.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(path, old)
    os.rename(partial, path)
    shutil.rmtree(old, ignore_errors=True)


def _end_tokens(tokenizer: Tokenizer) -> dict[str, Any]:
    stops = list(tokenizer.stop_ids)
    ids = {"eos_token_id": stops[0] if len(stops) == 1 else stops, "pad_token_id": tokenizer.pad_id}
    return ids if tokenizer.bos_id is None else {"bos_token_id": tokenizer.bos_id} | ids


def _write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _write_weights(directory, config, params, dtype, shard_bytes) -> None:
    places = families.places(config)
    sizes = {name: math.prod(place.shape) * dtype.itemsize for name, place in places.items()}
    shards = _shards(sizes, shard_bytes)
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = ["model.safetensors"]
    for file, shard in zip(names, shards, strict=True):
        shapes = {name: places[name].shape for name in shard}
        write_safetensors(directory / file, shapes, dtype, _fetch(shard, places, params, dtype))
    if len(shards) > 1:
        where = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        _write_json(directory / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where})


def _shards(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in order, cut so that no shard exceeds `limit` unless one tensor alone does."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _fetch(names, places, params, dtype) -> Iterator[np.ndarray]:
    for name in names:
        yield to_host(places[name].read(params)).astype(dtype, copy=False)
