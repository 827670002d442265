"""A rollout whose turns are answered: the engine's loops, left and entered again with their state as data.

    paused = start(...)                                   prompts prefilled, slots empty
    paused, pause = advance(paused, told, ...)            until every live slot waits for an observation
    told = answers to pause                               the host (conversation.py), a batch of turns at a time
    ...                                                   and so on, until nobody waits
    forest, stats = finish(paused, ...)

The caches stay where they are, and a slot goes on in its own: nothing is prefilled twice and nothing tokenised again.
An observation is fed as it would have been drawn, a token a step with whatever else the slots decode. The random number
of a token is that of its trajectory and place, so neither slots nor the order of answers change the Forest.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.rollout.draws import Origin, in_order
from iiblpo_jax.rollout.engine import RolloutStats, State, make_engine
from iiblpo_jax.rollout.forest import Forest
from iiblpo_jax.rollout.marker import MarkerTable
from iiblpo_jax.rollout.prefill import prefill
from iiblpo_jax.rollout.publication import Published
from iiblpo_jax.rollout.solved import Gold
from iiblpo_jax.rollout.spec import RolloutSpec
from iiblpo_jax.rollout.turns import Pause, Told, nothing_told


class Paused(struct.PyTreeNode):
    """The state of the loops, and the keys and values of the prompts (of `prefill`)."""

    state: State
    prefilled: Any


@struct.dataclass
class Conversing:
    """What a rollout is made of, as `engine.rollout` takes it, and the automaton of the text that ends a turn."""

    published: Published
    prompt_PS: jax.Array
    prompt_len_P: jax.Array
    key: jax.Array | Origin
    turn_end: MarkerTable
    latents: dict | None = None
    gold: Gold | None = None


def _engine(c: Conversing, spec: RolloutSpec):
    origin = c.key
    if not isinstance(origin, Origin):
        origin = in_order(origin, c.prompt_PS.shape[0], spec.group_size)
    answers = c.gold and c.gold.replace(markers=())
    of_prompts = (c.prompt_PS, c.prompt_len_P, origin, answers)
    markers = c.gold and c.gold.markers
    return make_engine((c.published, c.latents), markers, of_prompts, spec=spec, turn_end=c.turn_end)


@functools.partial(jax.jit, static_argnames="spec")
def start(c: Conversing, *, spec: RolloutSpec) -> Paused:
    """Before the first token."""
    with meshes.using(spec.mesh):
        engine = _engine(c, spec)
        prefilled = prefill(c.published, c.prompt_PS, spec.model, engine.spec.kv_dtype)
        return Paused(engine.initial(), prefilled)


@functools.partial(jax.jit, static_argnames="spec", donate_argnames="paused")
def advance(paused: Paused, told: Told, c: Conversing, *, spec: RolloutSpec) -> tuple[Paused, Pause]:
    """Hands out the answers and decodes on, until nothing can go on without others. `paused` is donated."""
    with meshes.using(spec.mesh):
        s = paused.state
        assert s.slots.turns is not None
        over_B = s.slots.turns.waits_B & told.done_B
        turns = s.slots.turns.told(told, s.slots.index_B)
        s = s.replace(slots=s.slots.replace(turns=turns, live_B=s.slots.live_B & ~over_B))
        s = _engine(c, spec).run(s, paused.prefilled)
        return paused.replace(state=s), _pause(s)


@functools.partial(jax.jit, static_argnames="spec")
def finish(paused: Paused, c: Conversing, *, spec: RolloutSpec) -> tuple[Forest, RolloutStats]:
    """The Forest, when nobody waits."""
    with meshes.using(spec.mesh):
        return _engine(c, spec).result(paused.state)


def _pause(s: State) -> Pause:
    slots, turns = s.slots, s.slots.turns
    mine = s.grown.of(jnp.maximum(slots.trajectory_B, 0))
    assert turns is not None and mine.turns is not None
    written_BT = jnp.arange(mine.packed_RTX.shape[1]) < slots.index_B[:, None]
    return Pause(
        waits_B=turns.waits_B,
        trajectory_B=slots.trajectory_B,
        turn_B=turns.turn_B,
        tokens_BT=mine.tokens_RT,
        mine_BT=written_BT & (mine.turns.turn_RT == turns.turn_B[:, None]),
    )


def rollout_in_turns(
    c: Conversing,
    answer: Callable[[Pause], Told | None],
    *,
    spec: RolloutSpec,
    call: Callable[..., Any] = lambda name, function, *args, **kwargs: function(*args, **kwargs),
) -> tuple[Forest, RolloutStats]:
    """`engine.rollout` where turns are answered.

    Args:
      c: what it is made of.
      answer: what waiting slots are told; None where nobody waits.
      spec: static, with turns.
      call: called with the name, the function and the arguments of every program; returns its outputs.
    """
    assert spec.turns is not None
    paused, told = call("rollout", start, c, spec=spec), nothing_told(spec.slots, spec.turns.observation)
    while told is not None:
        paused, pause = call("turn", advance, paused, told, c, spec=spec)
        told = answer(pause)
    return call("grown", finish, paused, c, spec=spec)
