"""What tells one model from another: its architecture and a few elements of every weight."""

import dataclasses
import hashlib
import json

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from iiblpo_jax.devices.mesh import to_host
from iiblpo_jax.model.config import ModelConfig

PROBES = 64  # elements of each weight that enter the fingerprint


def fingerprint(config: ModelConfig, params: dict) -> str:
    """Hex digest of an architecture and of PROBES evenly spaced elements of every weight.

    Elements are rounded to bfloat16 first: one checkpoint loaded in float32 and in bfloat16 is one model.
    """
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
    for path, weight in sorted(traverse_util.flatten_dict(params, sep="/").items()):
        # indices per axis rather than a ravel: a sharded weight is gathered element by element, never whole
        at = np.unravel_index(np.linspace(0, weight.size - 1, PROBES).astype(np.int64), weight.shape)
        digest.update(path.encode() + to_host(weight[at].astype(jnp.bfloat16)).tobytes())
    return digest.hexdigest()
