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


def selective_branches(config: RunConfig) -> bool:
    """Whether it depends on what a root said whether it has branches."""
    branch = config.branch
    return branch.k > 0 and (branch.min_entropy > 0 or not branch.solved)


def without_replacement(config: RunConfig) -> bool:
    """Whether branches begin with other tokens than those drawn before them, and are weighed by what they stand for."""
    return config.branch.k > 0 and not config.branch.replace


def other_codes(config: RunConfig) -> int:
    """Codes that each response is read under besides its own: all others at most; 0 = none is."""
    return min(config.codes.others, max(0, config.codes.n - 1))


def inherited_counts(config: RunConfig) -> bool:
    """Whether the tokens that a branch inherits count in its loss.

    Not where only some roots have branches: a prefix would be pushed by how well it goes on behind the roots that were
    chosen for their outcome. Sibling credit gives inherited tokens no advantage anyhow.
    """
    chosen = selective_branches(config) and config.branch.credit == "trajectory"
    return config.branch.prefix_loss and not chosen


def rollout_is_exact(config) -> bool:
    """Whether tokens are drawn from the policy that the update computes: both in float32, from the weights as they are.

    In anything coarser the two round differently, however alike their dtypes: decoding and packed rows sum in other
    orders. Then the behaviour differs on every token, with or without z; that of recorded rollouts always does.
    """
    r = config.rollout
    dtypes = {config.model.dtype, r.dtype, r.kv_dtype or r.dtype}
    return dtypes == {"float32"} and not r.weights and not config.data.recorded


def shows_answer(config: RunConfig) -> bool:
    """Whether somebody reads prompts with their answers."""
    return writes_hints(config) or (config.distill.coef > 0 and config.teacher.kind == "answer")


def writes_hints(config: RunConfig) -> bool:
    """Whether the teacher writes hints."""
    return config.hint.attempts > 0 and config.hint.source == "teacher"


def teaches(config: RunConfig) -> bool:
    """Whether there is a teacher."""
    return config.distill.coef > 0 or writes_hints(config)


def teacher_model(config: RunConfig) -> str:
    """The path of the teacher where it is another model than the policy; empty where it is not, or nobody teaches."""
    return config.teacher.path if teaches(config) and config.teacher.kind == "model" else ""


def decay_steps(config: RunConfig) -> int:
    """Rollouts after which a cosine is 0."""
    return config.optim.decay_steps or config.train.steps


def kept_per_prompt(config: RunConfig) -> int:
    """Trajectories of one prompt that are trained on, N: all of them without a filter, at most all with `contrast`.

    Raises:
      InputError: ib.keep exceeds the group.
    """
    group = group_size(config)
    whole = config.ib.filter == "none" or (config.ib.filter == "contrast" and config.ib.keep == 0)
    return group if whole else keep_count(config.ib.keep, group)


def minibatch_mistake(asked: int, rows: int, *, unit: int, shards: int = 1, microbatch: int = 0) -> str:
    """Why an update does not split evenly into minibatches, and which numbers do; empty if it does.

    Args:
      asked: update.minibatches.
      rows: trajectories of an update.
      unit: of them that stay together: those of a prompt where rows are packed, else 1.
      shards: devices among which the units of a minibatch are split; 1 for padded rows.
      microbatch: padded rows of one pass, which divide a minibatch; 0 = all of them.
    """
    units, what = rows // unit, "trajectories" if unit == 1 else "prompts"

    def splits(n: int) -> bool:
        return units // n % shards == 0 and not (microbatch and units // n * unit % microbatch)

    if units % asked == 0 and splits(asked):
        return ""
    fitting = list(filter(splits, divisors(units)))
    if units % asked:
        return (
            f"update.minibatches = {asked} does not divide the {units} {what} of an update; use "
            f"{_one_of(fitting or divisors(units))}"
        )
    if shards > 1:
        return (
            f"update.minibatches = {asked} leaves {units // asked} {what} to a minibatch, which do not split over "
            f"mesh.data * mesh.fsdp = {shards} devices; "
            + (f"use {_one_of(fitting)}" if fitting else f"make train.prompts_per_step a multiple of {shards}")
        )
    return (
        f"update.microbatch = {microbatch} does not divide the {rows // asked} trajectories of a minibatch; use "
        f"{_one_of(divisors(rows // asked))}, or 0 for the whole minibatch"
    )


def divisors(n: int) -> list[int]:
    """The whole numbers that divide n, from 1 up."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    return sorted({*small, *(n // d for d in small)})


def _one_of(numbers: list[int]) -> str:
    return f"one of {', '.join(map(str, numbers))}" if len(numbers) > 1 else str(numbers[0])


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
