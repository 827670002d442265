"""Checkpoints of earlier versions: their arrays, and those of today from them, so that a run goes on where it was.

- q, k and v, and gate and up, were not fused: the same numbers in another order, in weights and moments alike.
- The schedule of the learning rate went by optimizer steps, counted within the optimizer's state, a count for each part
  of the params. Today it goes by the rollouts that moved the policy, of which every rollout is taken for one.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from iiblpo_jax.model.layer import fuse_qkv

MOVED = "moved"  # of TrainState

# Today's leaf of `layers`: the earlier ones, the axis of today's that they lack, how today's comes of them. `o` had
# one axis for the kv heads and the query heads of each.
_FUSED = {
    "qkv": (("q", "k", "v"), 2, fuse_qkv),
    "qkv_bias": (("q_bias", "k_bias", "v_bias"), 2, fuse_qkv),
    "qk_norm": (("q_norm", "k_norm"), 1, lambda *parts: jnp.stack(parts, axis=1)),
    "gate_up": (("gate", "up"), 1, lambda *parts: jnp.stack(parts, axis=1)),
    "o": (("o",), 3, None),
}


def earlier(target: dict, stored: dict) -> tuple[dict, dict]:
    """What to read of a checkpoint, and what of it is accounted for by that: both as they are where it is of today.

    Args:
      target: ShapeDtypeStructs by name, a path joined by dots.
      stored: what the checkpoint says of its arrays, by name.

    Returns:
      (the ShapeDtypeStructs, by name, from which `today` makes those of `target`; `stored` without what nobody reads).
    """
    if MOVED in target and MOVED not in stored:
        target = {name: leaf for name, leaf in target.items() if name != MOVED}
        stored = {name: what for name, what in stored.items() if name in target or not name.endswith(".count")}
    return (_apart(target) if _is_apart(stored) else target), stored


def today(arrays: dict, target: dict) -> dict:
    """The arrays of `target` from those that `earlier` named, which are let go of one by one."""
    if MOVED in target and MOVED not in arrays:
        arrays[MOVED] = jnp.copy(arrays["step"])  # a copy: the state is donated, and each array only once
    return _fuse(arrays, target) if _is_apart(arrays) else arrays


def _is_apart(names) -> bool:
    """Whether arrays of these names are from before q, k and v were fused."""
    return any(name.endswith(".layers.q") for name in names)


def _apart(target: dict) -> dict:
    """The ShapeDtypeStructs, by name, from which `_fuse` makes those of `target`."""
    out = {}
    for name, leaf in target.items():
        for part, shape, axis in _parts(name, leaf):
            out[part] = jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=_without(leaf.sharding, axis, leaf.ndim))
    return out


def _fuse(arrays: dict, target: dict) -> dict:
    """The arrays of `target` from those of `_apart(target)`, which are let go of one by one."""
    out = {}
    for name, leaf in target.items():
        parts = [arrays.pop(part) for part, _, _ in _parts(name, leaf)]
        if _leaf(name) in _FUSED:
            join = functools.partial(_join, leaf=_leaf(name), shape=leaf.shape)
            out[name] = jax.jit(join, out_shardings=leaf.sharding)(*parts)
        else:
            (out[name],) = parts
    return out


def _join(*parts, leaf: str, shape: tuple):
    return parts[0].reshape(shape) if leaf == "o" else _FUSED[leaf][2](*parts)


def _leaf(name: str) -> str:
    """The last key of a weight of `layers`; empty for everything else."""
    path = name.split(".")
    return path[-1] if path[-2:-1] == ["layers"] else ""


def _parts(name: str, leaf) -> list[tuple]:
    """(earlier name, shape, axis of the leaf that it lacks or None) of everything that a leaf is made of."""
    if _leaf(name) not in _FUSED:
        return [(name, leaf.shape, None)]
    keys, axis, _ = _FUSED[_leaf(name)]
    shape = [*leaf.shape[:axis], *leaf.shape[axis + 1 :]]
    many = list(shape)  # queries, and heads of `o`: one a head rather than one a kv head
    many[axis - 1] *= leaf.shape[axis] - (2 if axis == 2 else 0)
    stem = name.removesuffix(_leaf(name))
    shapes = [many if key in ("q", "q_bias", "o") else shape for key in keys]
    return [(stem + key, tuple(its), axis) for key, its in zip(keys, shapes, strict=True)]


def _without(place, axis: int | None, ndim: int):
    """A leaf's sharding for a part that lacks one of its axes."""
    if axis is None or not isinstance(place, NamedSharding):
        return place
    spec = [*place.spec, *[None] * (ndim - len(place.spec))]
    return NamedSharding(place.mesh, PartitionSpec(*spec[:axis], *spec[axis + 1 :]))
