"""What tells one model from another: its architecture and a few elements of every weight."""

import dataclasses
import hashlib
import json
import math

import jax.numpy as jnp
import numpy as np

from iiblpo_jax.devices.mesh import to_host
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.files import families

PROBES = 64  # elements of each weight that enter the fingerprint


def fingerprint(config: ModelConfig, params: dict) -> str:
    """Hex digest of an architecture and of PROBES evenly spaced elements of every tensor, its layers stacked.

    Tensors are those of a checkpoint on disk (q, k and v apart), however the parameter tree fuses them: digests outlive
    our layout. Elements are rounded to bfloat16 first: one checkpoint loaded in float32 and in bfloat16 is one model.
    """
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
    for path, (weight, part) in sorted(_tensors(config, params).items()):
        digest.update(path.encode() + to_host(_probes(weight, part).astype(jnp.bfloat16)).tobytes())
    return digest.hexdigest()


def _tensors(config: ModelConfig, params: dict) -> dict:
    """(leaf, which part of it) of every tensor, by a path that names the tensor."""
    layers = params["layers"]
    parts = {
        f"layers/{key}": (layers[leaf], (slice(None), *part))
        for key, (leaf, part) in families.layer_parts(config).items()
        if leaf in layers
    }
    return parts | {name: (weight, ()) for name, weight in params.items() if name != "layers"}


def _probes(weight, part: tuple):
    """Elements of weight[part], evenly spaced."""
    shape = families.part_shape(weight.shape, part)
    # indices per axis rather than a ravel: a sharded weight is gathered element by element, never whole
    at = iter(np.unravel_index(np.linspace(0, math.prod(shape) - 1, PROBES).astype(np.int64), shape))
    axes = (*part, *[slice(None)] * (weight.ndim - len(part)))
    return weight[tuple(next(at) if isinstance(axis, slice) else axis for axis in axes)]
