"""Numbers that follow from a config."""

import math
from typing import Any

from ml_collections import ConfigDict

from iiblpo_jax.common import trees
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.defaults import KNOBS, RunConfig


def group_size(config: RunConfig) -> int:
    """Trajectories generated for one prompt: M trees."""
    return config.rollout.roots * trees.tree_size(config.branch.k, branch_levels(config))


def branch_levels(config: RunConfig) -> int:
    """Most branches between a root and a leaf of its tree."""
    return trees.levels(config.branch.k, config.branch.depth, config.branch.parent)


def rollout_is_exact(config) -> bool:
    """Whether tokens are drawn from the policy that the update computes, but for rounding: dtypes and weights agree.

    Where they do not, the behaviour policy differs on every token, with or without z; that of recorded rollouts always.
    """
    r, dtype = config.rollout, config.model.dtype
    return not config.data.recorded and r.dtype == dtype and (r.kv_dtype or r.dtype) == dtype and not r.weights


def kept_per_prompt(config: RunConfig) -> int:
    """Trajectories of one prompt that are trained on, N: all of them without a filter, at most all with `contrast`.

    Raises:
      InputError: ib.keep exceeds the group.
    """
    group = group_size(config)
    whole = config.ib.filter == "none" or (config.ib.filter == "contrast" and config.ib.keep == 0)
    return group if whole else keep_count(config.ib.keep, group)


def injected_layers(config: RunConfig, n_layers: int) -> int:
    """How many of a model's last layers PSA injects.

    Raises:
      InputError: psa.layers asks for more layers than the model has.
    """
    n = n_layers if config.psa.layers == "all" else int(config.psa.layers)
    if n > n_layers:
        raise InputError(f"psa.layers = {n} but the model has {n_layers} layers; use at most {n_layers}, or all")
    return n


MESH_AXES = ("data", "fsdp", "sequence", "tensor")


def mesh_shape(mesh: ConfigDict, *, devices: int | None) -> tuple[int, ...]:
    """Devices along MESH_AXES, -1 filled in.

    Args:
      mesh: the mesh section.
      devices: devices that exist; None checks only what can be checked without them and leaves -1 as it is.

    Raises:
      InputError: a size below 1, or the product is not the number of devices; the message gives numbers that work.
    """
    shape: dict[str, Any] = {axis: mesh[axis] for axis in MESH_AXES}
    for axis, size in shape.items():
        KNOBS[f"mesh.{axis}"].check(f"mesh.{axis}", size)
    free = [axis for axis, size in shape.items() if size == -1]
    if len(free) > 1:
        raise InputError(f"mesh.{free[0]} and mesh.{free[1]} are both -1; fix one of them, such as mesh.{free[1]}=1")
    if devices is None:
        return tuple(shape.values())
    fixed = math.prod(size for size in shape.values() if size > 0)
    if devices % fixed or (not free and fixed != devices):
        raise InputError(
            f"mesh {shape} asks for {fixed} device{'s' * (fixed > 1)} and {devices} exist; {_mend_mesh(shape, devices)}"
        )
    return tuple(devices // fixed if size == -1 else size for size in shape.values())


def _mend_mesh(shape: dict, devices: int) -> str:
    tensor = shape["tensor"] if shape["tensor"] > 0 and devices % shape["tensor"] == 0 else 1
    split = f"mesh.data=1 mesh.fsdp={devices // tensor} mesh.sequence=1 mesh.tensor={tensor}"
    return f"use {split}, or mesh.data=-1 mesh.fsdp=1 mesh.sequence=1 mesh.tensor=1"


def keep_count(keep: int, group: int) -> int:
    """N from `ib.keep`, 0 standing for half of the group.

    Raises:
        InputError: more than the group has, or negative.
    """
    if not 0 <= keep <= group:
        raise InputError(f"ib.keep={keep} but a prompt has {group} trajectories; give 1..{group}, or 0 for half")
    return keep or max(1, group // 2)
