"""The one place that knows about sharding: the device mesh, and which mesh axes split which logical axes.

Weights name their logical axes where they are defined (`nnx.Param(..., axes=(...))`). Two tables map them to mesh axes:
TRAIN spreads weights and optimiser state over fsdp x tensor, ROLLOUT keeps them whole but for tensor, so that decoding
gathers no weights. Rows of a batch are split over data x fsdp in both.
"""

import math

import jax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from iiblpo_jax.configuration import mesh_shape
from iiblpo_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")
_WHOLE = dict.fromkeys(("layers", "head", "norm", "latent", "latent_mlp"))
_TENSOR = dict.fromkeys(("vocab", "heads", "kv_heads", "mlp"), "tensor")
TRAIN = {**_WHOLE, **_TENSOR, "embed": "fsdp", "batch": ("data", "fsdp")}
ROLLOUT = {**TRAIN, "embed": None}


def make_mesh(mesh, *, prompts: int | None = None, devices: list | None = None) -> Mesh:
    """The mesh (data, fsdp, tensor) of a config, with Auto axes: the compiler places what the tables leave open.

    Args:
      mesh: the mesh section of the config.
      prompts: prompts of a step, which data x fsdp must divide; None = not checked.
      devices: default: all devices of all processes.

    Raises:
      InputError: the axes do not multiply to the number of devices, or do not divide `prompts`.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(mesh, devices=len(devices))
    shards = shape[0] * shape[1]
    if prompts is not None and prompts % shards:
        nearest = max(shards, round(prompts / shards) * shards)
        raise InputError(
            f"train.prompts_per_step = {prompts} cannot be split over mesh.data * mesh.fsdp = {shards} devices; "
            f"use a multiple of {shards}, such as {nearest}"
        )
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def sharding(mesh: Mesh, axes: tuple[str | None, ...], table: dict, *, shape: tuple[int, ...]) -> NamedSharding:
    """Sharding of one array by its logical axes.

    Args:
      mesh: of `make_mesh`.
      axes: a logical axis a dimension; None = not split.
      table: TRAIN or ROLLOUT.
      shape: of the array. A dimension that its mesh axes do not divide stays whole: 2 kv heads over 4 devices.
    """

    def mesh_axes(axis, size):
        names = None if axis is None else table[axis]
        devices = math.prod(mesh.shape[name] for name in ([names] if isinstance(names, str) else names or ()))
        return names if size % devices == 0 else None

    return NamedSharding(mesh, PartitionSpec(*map(mesh_axes, axes, shape)))


def param_shardings(module: nnx.Module, mesh: Mesh, table: dict) -> dict:
    """Shardings of every weight of a module (an abstract one will do), nested as in `decoder.params_of`."""
    state = nnx.split(module, nnx.Param, ...)[1]
    return nnx.to_pure_dict(
        jax.tree.map(
            lambda p: p.replace(sharding(mesh, p.get_metadata()["axes"], table, shape=p.shape)),
            state,
            is_leaf=lambda x: isinstance(x, nnx.Variable),
        )
    )


def shard_params(params: dict, shardings: dict) -> dict:
    """The same arrays, placed."""
    return jax.device_put(params, shardings)
