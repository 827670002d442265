"""What a step has before the rewards, and how that of two rollouts becomes one of the same shape. In graph."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.rollout.engine import RolloutStats
from iiblpo_jax.rollout.forest import Forest
from iiblpo_jax.step.inform import Columns


class Sampled(NamedTuple):
    """Trajectories, what sampling them took, and what frozen models say of them."""

    forest: Forest
    stats: RolloutStats
    columns: Columns


@functools.partial(jax.jit, static_argnames="mesh")
def merge(kept: Sampled, fresh: Sampled, take_P: jax.Array, *, mesh: Mesh | None = None) -> Sampled:
    """P of the 2P prompts of two rollouts with all that belongs to them; the tokens of both are counted.

    Args:
      kept, fresh: of P prompts each.
      take_P: which ones, in their new order; those of `fresh` are numbered from P on.
      mesh: devices among which prompts are split; None = one.
    """
    prompts, size = take_P.shape[0], kept.forest.group_size

    def take(*halves):  # [P,...] or [R,...] each, prompt by prompt
        both = jnp.concatenate([x.reshape(prompts, x.shape[0] // prompts, *x.shape[1:]) for x in halves])
        return both[take_P].reshape(halves[0].shape)

    with meshes.using(mesh):
        halves = ((_within(x.forest), x.columns) for x in (kept, fresh))
        forest, columns = jax.tree.map(take, *halves)
        begins_R = forest.group_R * size
        forest = forest.replace(parent_R=jnp.where(forest.parent_R < 0, -1, forest.parent_R + begins_R))
        forest, columns = meshes.as_rolled_out((forest, columns), prompts)
    return Sampled(forest, added(kept.stats, fresh.stats), columns)


def _within(forest: Forest) -> Forest:
    """The Forest with parents counted from the first trajectory of their prompt."""
    begins_R = forest.group_R * forest.group_size
    return forest.replace(parent_R=jnp.where(forest.parent_R < 0, -1, forest.parent_R - begins_R))


def added(a: RolloutStats, b: RolloutStats) -> RolloutStats:
    """Of one rollout after the other: slots were busy for all tokens of all their steps."""
    tokens = a.tokens + b.tokens
    capacity = sum(s.tokens / jnp.maximum(s.slot_utilisation, 1e-9) for s in (a, b))  # steps * slots
    return RolloutStats(tokens=tokens, slot_utilisation=tokens / jnp.maximum(capacity, 1))
