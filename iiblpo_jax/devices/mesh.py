"""The one place that knows about sharding: the device mesh, and which mesh axes split which logical axes.

Weights name their logical axes where they are defined (`nnx.Param(..., axes=(...))`). Two tables map them to mesh axes:
TRAIN spreads weights and optimiser state over fsdp x tensor, ROLLOUT keeps them whole but for tensor, so that decoding
gathers no weights. Rows of a batch are split over data x fsdp; the nodes of one forward over sequence; a rollout, which
has no use for sequence, splits its prompts over it as well where they divide.

A jitted program states its mesh once, at its top (`using`); what it calls asks for the mesh (`current`) or says how an
array should lie (`constrain`). Without a mesh, or with one device, both do nothing.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.derived import MESH_AXES, mesh_shape

AXES = MESH_AXES
_WHOLE = dict.fromkeys(("layers", "head", "norm", "latent", "latent_mlp"))
_TENSOR = dict.fromkeys(("vocab", "heads", "kv_heads", "mlp"), "tensor")
TRAIN = {**_WHOLE, **_TENSOR, "embed": "fsdp", "batch": ("data", "fsdp"), "sequence": "sequence"}
ROLLOUT = {**TRAIN, "embed": None}


def make_mesh(mesh, *, prompts: int | None = None, devices: list | None = None) -> Mesh:
    """The mesh (AXES) of a config, with Auto axes: the compiler places what the tables leave open.

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
    # jax.make_mesh would refuse, say, 8 x 2 x 4 on a torus of 4 x 4 x 4.
    placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def sharding(mesh: Mesh, axes: tuple[str | None, ...], table: dict, *, shape: tuple[int, ...]) -> NamedSharding:
    """Sharding of one array by its logical axes.

    Args:
      mesh: of `make_mesh`.
      axes: a logical axis a dimension; None = not split.
      table: TRAIN or ROLLOUT.
      shape: of the array. A dimension that its mesh axes do not divide stays whole: 2 kv heads over 4 devices.
    """

    return NamedSharding(mesh, partition(mesh, axes, table, shape=shape))


def partition(mesh: Mesh | AbstractMesh, axes, table: dict = TRAIN, *, shape, free=AXES) -> PartitionSpec:
    """The PartitionSpec of `sharding`, of the mesh axes in `free` alone."""

    def mesh_axes(axis, size):
        names = None if axis is None else table[axis]
        names = tuple(name for name in ([names] if isinstance(names, str) else names or ()) if name in free)
        return names if names and size % math.prod(mesh.shape[name] for name in names) == 0 else None

    return PartitionSpec(*map(mesh_axes, axes, shape[: len(axes)]))


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
    """The same arrays, placed; of several processes, which all have the whole of them, each keeps its part."""
    if jax.process_count() == 1:
        return jax.device_put(params, shardings)  # which for several would gather everything, only to compare it

    def part(x, place):
        return jax.make_array_from_callback(x.shape, place, lambda index: x[index])

    return jax.tree.map(part, params, shardings)


# -- inside a program -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def using(mesh: Mesh | None) -> Iterator[None]:
    """While a program is traced: the mesh that `current`, `constrain` and `platform` speak of."""
    if mesh is None:
        yield
        return
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        yield


def current() -> AbstractMesh | None:
    """The mesh of the program being traced; None where one device does all the work."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 else mesh


def platform() -> str:
    """What the program being traced will run on: `cpu`, `gpu` or `tpu`. It may be compiled for devices elsewhere."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def constrain(x: jax.Array, *axes: str | None, table: dict = TRAIN) -> jax.Array:
    """x, placed by its logical axes; those that a shard_map around has split already are left out."""
    mesh = current()
    if mesh is None:
        return x
    free = [name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Auto]
    return jax.lax.with_sharding_constraint(x, partition(mesh, axes, table, shape=x.shape, free=free))


def shards(mesh: Mesh | AbstractMesh | None, logical: str = "batch") -> int:
    """Parts into which a mesh splits a logical axis."""
    names = TRAIN[logical]
    return 1 if mesh is None else math.prod(mesh.shape[name] for name in ([names] if isinstance(names, str) else names))


def rollout_axes(mesh: Mesh | AbstractMesh | None, prompts: int) -> tuple[str, ...]:
    """Mesh axes over which a rollout of so many prompts is split; empty = every device does the whole of it."""
    if mesh is None or mesh.size == 1 or prompts % shards(mesh):
        return ()
    wide = (*TRAIN["batch"], TRAIN["sequence"])
    return wide if prompts % (shards(mesh) * shards(mesh, "sequence")) == 0 else TRAIN["batch"]


# -- between hosts and devices ----------------------------------------------------------------------------------------


def to_devices(tree, mesh: Mesh | None, *axes: str | None) -> Any:
    """Host arrays, the same in every process, on the mesh by their first logical axes; none = whole on every device.

    Without a mesh they stay where they are.
    """
    if mesh is None:
        return tree

    def put(x):
        x = np.asarray(x)
        place = sharding(mesh, (*axes, *[None] * (x.ndim - len(axes))), TRAIN, shape=x.shape)
        return jax.make_array_from_callback(x.shape, place, lambda index: x[index])

    return jax.tree.map(put, tree)


def placed(tree, mesh: Mesh) -> Any:
    """The tree with every leaf on the mesh: what is there stays where it is, the rest goes on every device."""
    everywhere = NamedSharding(mesh, PartitionSpec())

    def place(x):
        return x if getattr(x.sharding, "mesh", None) == mesh else jax.device_put(x, everywhere)

    return jax.tree.map(place, tree)


def to_host(tree):
    """Arrays as NumPy arrays in every process; waits for them."""

    def whole(x):
        return multihost_utils.process_allgather(x, tiled=True) if _scattered(x) else x

    return jax.device_get(jax.tree.map(whole, tree))


def _scattered(x) -> bool:
    """Some of it lies on devices of other processes alone."""
    return isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)


def spread(tree):
    """A tree of [N, ...] arrays, its rows split over the mesh of the program being traced where they divide."""
    return jax.tree.map(lambda x: constrain(x, "batch"), tree)


def whole(tree):
    """A tree of arrays, all of it on every device of the mesh of the program being traced."""
    return jax.tree.map(constrain, tree)


def as_rolled_out(tree, prompts: int):
    """A tree of arrays whose first axis counts prompts or trajectories, split as a rollout of so many prompts is."""
    axes = rollout_axes(current(), prompts)
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec(axes)), tree) if axes else tree
