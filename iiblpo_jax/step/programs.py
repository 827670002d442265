"""One step, put together."""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from iiblpo_jax.rollout.engine import rollout
from iiblpo_jax.rollout.solved import gold_of
from iiblpo_jax.step.inform import inform
from iiblpo_jax.step.score import score
from iiblpo_jax.update.rows import UpdateRows


class Program(NamedTuple):
    """A jitted function and its abstract arguments."""

    name: str
    mend: str
    function: Any
    args: tuple
    kwargs: Mapping = MappingProxyType({})


def abstract_of(tree):
    """The same tree as jax.ShapeDtypeStructs, with the shardings of what is bound to its devices.

    Leaves that are ShapeDtypeStructs already stay as they are.
    """

    def abstract(x):
        if isinstance(x, jax.ShapeDtypeStruct):
            return x
        sharding = x.sharding if getattr(x, "committed", False) else None
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return jax.tree.map(abstract, tree)


class StepPrograms:
    """The programs of a step up to its update, with abstract arguments: each takes what the one before puts out.

    Args:
      state: TrainState; of this and all other arrays only shapes and shardings are kept.
      reference, cvae: weights; None for no cvae.
      inputs: arrays of a batch, as `rollout` (prompt) and `inform` (marker_P, cue, answer) take them.
      markers: MarkerTables of the tasks.
      rollout_spec, score_spec: static arguments.
      publish: jitted: policy weights -> what `rollout` takes.
    """

    def __init__(self, *, state, reference, cvae, inputs, markers, rollout_spec, score_spec, publish):
        alive = (state, reference, cvae, inputs, markers, jax.random.key(0))
        self.state, self._reference, self._cvae, self._inputs, self._markers, self.key = abstract_of(alive)
        self.alive = (self.state, self._reference, self._cvae)
        self._rollout_spec, self._score_spec, self.publish = rollout_spec, score_spec, publish

    def run(self, call) -> UpdateRows:
        """Calls `call(Program)` for publish, rollout, inform and score, in this order; returns the rows of the update.

        `call` returns the abstract outputs of the program.
        """
        latents = None if self._cvae is None else {"psa": self.state.params["psa"], "cvae": self._cvae}
        published = call(Program("publish", "use rollout.dtype=bfloat16", self.publish, (self.state.params["policy"],)))
        forest, _ = call(
            Program(
                "rollout",
                "lower rollout.slots",
                rollout,
                (published, *self._inputs["prompt"], self.key),
                {
                    "spec": self._rollout_spec,
                    "latents": latents,
                    "gold": gold_of(self._rollout_spec.branching, self._markers, self._inputs),
                },
            )
        )
        reads = (self._inputs["marker_P"], self._inputs["cue"], self._inputs["answer"])
        information = call(
            Program(
                "inform",
                "lower train.prompts_per_step, or raise mesh.fsdp",
                inform,
                (self._reference, forest, self._markers, *reads),
                {"spec": self._score_spec},
            )
        )
        reward_R = jax.ShapeDtypeStruct(forest.length_R.shape, "float32")
        arguments = (forest, reward_R, information, self.key, self.state.step)
        return call(Program("score", "lower train.prompts_per_step", score, arguments, {"spec": self._score_spec})).rows


def update_program(programs: StepPrograms, update, rows: UpdateRows) -> Program:
    """The program that follows those of StepPrograms; `update` is that of make_update, rows as `run` returns them."""
    return Program(
        "update", "lower update.microbatch, or raise mesh.fsdp", update, (programs.state, rows, programs.key)
    )


def abstract_rows(programs: StepPrograms) -> UpdateRows:
    """Shapes of the update's rows; nothing is compiled."""
    return programs.run(lambda p: jax.eval_shape(partial(p.function, **p.kwargs), *p.args))
