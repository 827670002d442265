"""One step, from top to bottom: which programs it has, what each takes, and in which order they run.

    publish   the policy as decoding wants it
    rollout   prompts -> Forest; with turns.most in parts, `turn` after `turn`, between which the host answers
    inform    frozen models, and where a method asks the policy, read the Forest
              (the host verifies the responses meanwhile)
    merge     with train.refills, where too few prompts have anything to teach: the first three again with other
              prompts, and the P best of both
    replace   with hint.attempts, where a prompt has no reward: the first two again with hints (which a teacher may
              write), right responses take the place of others, inform again
    score     rewards -> kept rows with their advantages
    update    optimizer steps on these rows

Where the rollout was recorded before, the first two are left out and its Forest is there from the start.

Whoever runs, compiles, measures or plans a step goes through `StepPrograms.step`.
"""

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax.sharding import Mesh

from iiblpo_jax.bottleneck import Reading
from iiblpo_jax.config import derived
from iiblpo_jax.environments.interface import SEEN
from iiblpo_jax.model.adapters.adapted import Adapted, Weights, policy_of
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import Decoder, params_of
from iiblpo_jax.objectives.rows import NOVELTY, PLAN
from iiblpo_jax.rollout.conversing import Conversing, rollout_in_turns
from iiblpo_jax.rollout.engine import RolloutStats, rollout
from iiblpo_jax.rollout.forest import Forest
from iiblpo_jax.rollout.marker import MarkerTable
from iiblpo_jax.rollout.publication import Published, publisher
from iiblpo_jax.rollout.solved import Gold
from iiblpo_jax.rollout.spec import RolloutSpec
from iiblpo_jax.rollout.turns import Pause, Told
from iiblpo_jax.step import specs
from iiblpo_jax.step.hinted import Ask, Replace, replaced
from iiblpo_jax.step.inform import InformSpec, inform
from iiblpo_jax.step.sampled import Sampled, merge
from iiblpo_jax.step.score import Rows, ScoreSpec, score
from iiblpo_jax.step.teacher import TeacherReader
from iiblpo_jax.update.epochs import make_update
from iiblpo_jax.update.gradient import MinibatchGradient
from iiblpo_jax.update.state import TrainState


class Program(NamedTuple):
    """A jitted function with its arguments, arrays or their shapes; `mend` is what makes it smaller, and `beside` what
    else a step holds while it runs."""

    name: str
    mend: str
    function: Any  # what jax.jit returns
    args: tuple
    kwargs: Mapping = MappingProxyType({})
    beside: Any = ()


@struct.dataclass
class Asked:
    """The arrays of a batch of P prompts.

    Attributes:
      prompt_PS, prompt_len_P: right-padded prompts.
      gold: their answers, and how they are asked for.
      forest: recorded trajectories to learn from; None = they are rolled out.
      turn_end: automaton of the text that ends a turn; None where a response is one.
    """

    prompt_PS: jax.Array
    prompt_len_P: jax.Array
    gold: Gold
    forest: Forest | None = None
    turn_end: MarkerTable | None = None


@struct.dataclass
class Frozen:
    """Weights that a step reads and never changes.

    Attributes:
      readers: of `inform`, by name.
      cvae: of the latent's prior; None without a latent.
    """

    readers: dict
    cvae: dict | None

    @property
    def base(self) -> Adapted | None:
        """What the adapter is trained beside, which with it off is the reference; None where the policy is whole."""
        reference = self.readers[specs.REFERENCE]
        return reference if isinstance(reference, Adapted) else None

    def policy(self, state: TrainState) -> Weights:
        """The policy of a state."""
        return policy_of(state.params, self.base)


class Keys(NamedTuple):
    """The random keys of a step."""

    rollout: jax.Array
    select: jax.Array
    update: jax.Array


class Refill(NamedTuple):
    """A further rollout of a step: P other prompts, and its random key."""

    asked: Asked
    key: jax.Array


class Judged(NamedTuple):
    """What the host says of the responses: rewards [R], and columns [R] that the method needs besides."""

    reward_R: Any
    columns: Mapping[str, Any]


class Updated(NamedTuple):
    """What a step ends with: the new state, and the metrics of the update."""

    state: TrainState
    metrics: dict


def step_keys(seed: int, step: int) -> Keys:
    """Keys of step number `step` of a run: a resumed run draws what the killed one would have drawn."""
    return Keys(*jax.random.split(jax.random.fold_in(jax.random.key(seed), step), 3))


def refill_key(seed: int, step: int, refill: int) -> jax.Array:
    """Key of refill number `refill`, from 1, of a step: a child of the step's key that is none of `step_keys`."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.random.fold_in(jax.random.fold_in(key, len(Keys._fields)), refill)


def nobody_waits(pause: Pause) -> None:
    """The answers where there is nobody to ask."""
    del pause


def hint_key(seed: int, step: int, attempt: int) -> jax.Array:
    """Key of rollout number `attempt`, from 1, of a step with hints: one that nobody else has."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.random.fold_in(jax.random.fold_in(key, len(Keys._fields) + 1), attempt)


def run(program: Program) -> Any:
    """Dispatches a program."""
    return program.function(*program.args, **program.kwargs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HintPrograms:
    """What asking with hints takes besides the programs of a step.

    Attributes:
      reading, dtype: how the policy reads responses that were found with a hint.
      writer: the rollout of the teacher that writes hints; None where none does.
      publish: jitted, its weights -> Published, where it is another model; None = as the policy's.
    """

    reading: Reading
    dtype: str
    writer: RolloutSpec | None = None
    publish: Callable[[dict], Published] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepPrograms:
    """The programs of a run, with all that is static about them.

    Attributes:
      rollout_spec, inform_spec, score_spec: static arguments.
      publish: jitted, the policy -> Published.
      gradient: loss and gradient of a minibatch, what `update` is made of.
      update: jitted, (TrainState, donated; Rows; key; the base of an adapter) -> (TrainState, metrics).
      refills: most further rollouts of a step; the host says how many there are.
      hints: how prompts are asked with hints; None where they are not.
    """

    rollout_spec: RolloutSpec
    inform_spec: InformSpec
    score_spec: ScoreSpec
    publish: Callable[[Weights], Published]
    gradient: MinibatchGradient
    update: Callable
    refills: int = 0
    hints: HintPrograms | None = None

    def step(
        self,
        state: TrainState,
        frozen: Frozen,
        asked: Asked,
        keys: Keys,
        *,
        call: Callable[[Program], Any] = run,
        answer: Callable[[Pause], Told | None] = nobody_waits,
    ) -> Generator[Any, Any, None]:
        """One step. The caller takes it in three parts, since the host has to see the responses in between:

            step = programs.step(state, frozen, asked, keys)
            sampled = next(step)            # Sampled, under way on the device
            scored = step.send(judged)      # Judged in, Scored out
            updated = next(step)            # Updated; `state` was donated

        Where too few of the P prompts have anything to teach it has others sampled first, as often as it likes:

            fresh = step.send(Refill(...))  # Sampled, of these prompts alone
            sampled = step.send(take_P)     # Sampled, P prompts of both (sampled.merge)

        Where prompts have no reward it has them asked with hints, as often as it likes:

            fresh = step.send(Ask(...))     # Sampled, of these prompts, or of the teacher that writes the hints
            sampled = step.send(Replace(...))  # Sampled, with some responses replaced (hinted.replaced)

        Args:
          state, frozen, asked, keys: arrays, or their shapes where `call` does not run anything.
          call: what is done with a Program; returns its outputs.
          answer: what waiting slots are told (conversation.py), where turns are answered: then `next(step)` comes back
            when the trajectories are there.
        """
        sampled = self._sample(state, frozen, asked, keys.rollout, call, answer=answer)
        said = yield sampled
        while isinstance(said, Refill):
            fresh = self._sample(state, frozen, said.asked, said.key, call, beside=sampled)
            take_P = yield fresh
            both, mesh = (sampled, fresh, take_P), self.rollout_spec.mesh
            sampled = call(Program("merge", "lower train.prompts_per_step", merge, both, {"mesh": mesh}))
            del fresh, both
            said = yield sampled
        while isinstance(said, Ask | Replace):
            if isinstance(said, Ask):
                said = yield self._ask(state, frozen, said, call, beside=sampled)
            else:
                sampled = self._replaced(state, frozen, asked, sampled, said, call)
                said = yield sampled
        forest, _, columns = sampled
        arguments = (forest, said.reward_R, columns | said.columns, keys.select, state.step)
        scored = call(Program("score", "lower train.prompts_per_step", score, arguments, {"spec": self.score_spec}))
        yield scored
        mend = "lower update.microbatch, or raise mesh.fsdp"
        beneath = () if frozen.base is None else (frozen.base,)
        arguments = (state, scored.rows, keys.update, self.teacher_weights(frozen), *beneath)
        yield Updated(*call(Program("update", mend, self.update, arguments)))

    def _rollout(self, published, steering, asked: Asked, key, call, beside, answer) -> tuple[Forest, RolloutStats]:
        """Prompts -> Forest, in one program or in turns."""
        mend, gold, spec = "lower rollout.slots", self._gold(asked), self.rollout_spec
        prompts = asked.prompt_PS, asked.prompt_len_P
        if spec.turns is None:
            named = {"spec": spec, "latents": steering, "gold": gold}
            return call(Program("rollout", mend, rollout, (published, *prompts, key), named, beside))
        assert asked.turn_end is not None
        made_of = Conversing(published, *prompts, key, asked.turn_end, steering, gold)

        def run_part(name, function, *args, **named):
            return call(Program(name, mend, function, args, named, beside))

        return rollout_in_turns(made_of, answer, spec=spec, call=run_part)

    def _sample(
        self,
        state: TrainState,
        frozen: Frozen,
        asked: Asked,
        key: jax.Array,
        call: Callable,
        beside: Any = (),
        answer: Callable[[Pause], Told | None] = nobody_waits,
    ) -> Sampled:
        """What becomes of P prompts before their rewards; `beside`: what the step holds already."""
        if asked.forest is None:
            policy, mend = frozen.policy(state), "use rollout.dtype=bfloat16"
            publish = Program("publish", mend, self.publish, (policy,), beside=beside)
            published = call(publish)
            forest, stats = self._rollout(published, latents(state, frozen), asked, key, call, beside, answer)
            del published  # a copy of the weights, which the update can use the room of
        else:
            forest, stats = asked.forest, RolloutStats(tokens=jnp.int32(0), slot_utilisation=jnp.float32(0))
        return Sampled(forest, stats, self._informed(state, frozen, asked, forest, call, beside))

    def _informed(self, state: TrainState, frozen: Frozen, asked: Asked, forest: Forest, call: Callable, beside: Any):
        """What models say of a Forest."""
        return call(
            Program(
                "inform",
                "lower train.prompts_per_step, or raise mesh.fsdp",
                inform,
                (self._readers(state, frozen), forest, asked.gold),
                {"spec": self.inform_spec},
                beside,
            )
        )

    def _ask(self, state: TrainState, frozen: Frozen, said: Ask, call: Callable, beside: Any) -> Sampled:
        """A rollout with hints, or the teacher's; nobody reads it."""
        assert self.hints is not None, "a config with hint.attempts has them"
        publish, spec, weights, whose = self.publish, self.rollout_spec, frozen.policy(state), ""
        if said.writes:
            assert self.hints.writer is not None, "hint.source = teacher"
            publish, spec, whose = self.hints.publish or publish, self.hints.writer, " (teacher)"
            weights = self._writer(state, frozen)
        published = call(Program(f"publish{whose}", "use rollout.dtype=bfloat16", publish, (weights,), beside=beside))
        arguments = (published, said.prompt_PS, said.prompt_len_P, said.key)
        forest, stats = call(
            Program(f"rollout{whose}", "lower rollout.slots", rollout, arguments, {"spec": spec}, beside)
        )
        return Sampled(forest, stats, {})

    def _writer(self, state: TrainState, frozen: Frozen) -> Weights:
        """The weights of the teacher that writes hints."""
        if specs.TEACHER in frozen.readers:
            return frozen.readers[specs.TEACHER]
        return frozen.policy(state) if state.average is None else state.average["policy"]

    def _replaced(
        self, state: TrainState, frozen: Frozen, asked: Asked, sampled: Sampled, said: Replace, call: Callable
    ) -> Sampled:
        """The step's rollout with some responses replaced, and read anew."""
        assert self.hints is not None, "a config with hint.attempts has them"
        how = {"model": self.rollout_spec.model, "reading": self.hints.reading, "dtype": self.hints.dtype}
        arguments, how = (frozen.policy(state), sampled.forest, said), how | {"mesh": self.rollout_spec.mesh}
        forest = call(Program("replace", "lower train.prompts_per_step", replaced, arguments, how))
        return Sampled(forest, sampled.stats, self._informed(state, frozen, asked, forest, call, ()))

    @property
    def judged(self) -> tuple[str, ...]:
        """Names of the columns of `Judged`: those that the method needs and the host has."""
        return tuple(name for name in self.score_spec.credit.objective.needs if name in (PLAN, SEEN))

    @property
    def root_codes(self) -> tuple[int, int] | None:
        """Trees of a prompt, and the token of code 0; None without codes."""
        spec = self.rollout_spec
        return None if spec.codes is None else (spec.roots, spec.codes.first)

    def _readers(self, state: TrainState, frozen: Frozen) -> dict:
        """The weights that `inform` reads under: the frozen ones, and of what changes the state's own, no copies."""
        moving = {specs.POLICY: frozen.policy(state), NOVELTY: state.novelty}
        if state.average is not None:
            moving[specs.AVERAGE] = state.average["policy"]
        asked = dict(self.inform_spec.readers)
        fixed = {name: w for name, w in frozen.readers.items() if name in asked or name != specs.TEACHER}
        return fixed | {name: weights for name, weights in moving.items() if name in asked}

    def teacher_weights(self, frozen: Frozen) -> dict | None:
        """What `update` takes of a teacher that is another model: its output weights, None where it needs none."""
        term = self.score_spec.credit.objective.distillation
        if term is None or term.top_k or specs.TEACHER not in frozen.readers:
            return None
        reader = dict(self.inform_spec.readers)[specs.TEACHER]
        assert isinstance(reader, TeacherReader)
        teacher = reader.model
        return frozen.readers[specs.TEACHER]["embed" if teacher.tied_embeddings else "head"]

    def _gold(self, asked: Asked) -> Gold | None:
        """The answers, where branches depend on them."""
        return asked.gold if self.rollout_spec.branching.asks_answer else None


def latents(state: TrainState, frozen: Frozen) -> dict | None:
    """What `rollout` draws and injects latents with."""
    return None if frozen.cvae is None else {"psa": state.params["psa"], "cvae": frozen.cvae}


def make_programs(
    config,
    model: ModelConfig,
    state: TrainState,
    optimizer,
    *,
    stop_ids: Sequence[int],
    start_id: int,
    never_ids: Sequence[int] = (),
    mesh: Mesh,
    base: Adapted | None = None,
) -> StepPrograms:
    """The programs of a config.

    Args:
      config: of the run.
      model: architecture of the policy and the reference.
      state: where its arrays lie decides where those of the next one do; shapes will do.
      optimizer: of `specs.optimizer`.
      stop_ids, start_id: of the tokenizer.
      never_ids: its textless_ids, which the distributions of policy and reference do not have.
      mesh: devices.
      base: of the adapter that the state trains; shapes will do.

    Raises:
      InputError: an unknown method, or rows that do not split as the config says.
    """
    method = specs.objective(config)
    # Left to the compiler the new state may lie elsewhere, and every program that takes it would be compiled again.
    placement = jax.tree.map(lambda x: x.sharding, state)
    settings = specs.update_settings(config, method, never_ids=never_ids, mesh=mesh)
    gradient = MinibatchGradient(settings=settings, objective=method, model_config=model, shardings=placement.params)
    sampled = specs.rollout_spec(config, model, stop_ids, never_ids=never_ids, record=method.record, mesh=mesh)
    hints = None
    if config.hint.attempts:
        writer = specs.writer_spec(config, sampled)
        hints = HintPrograms(
            reading=specs.plain_reading(config, never_ids=never_ids, mesh=mesh),
            dtype=config.model.dtype,
            writer=writer,
            publish=_writes(config, writer, mesh),
        )
    return StepPrograms(
        rollout_spec=sampled,
        inform_spec=specs.inform_spec(config, model, start_id, never_ids=never_ids, needs=method.needs, mesh=mesh),
        score_spec=specs.score_spec(config, method),
        publish=publisher(specs.publication_spec(config, model), policy_of(state.params, base), mesh),
        gradient=gradient,
        update=make_update(gradient, optimizer, specs.schedule(config), state_shardings=placement),
        refills=config.train.refills,
        hints=hints,
    )


def _writes(config, writer: RolloutSpec | None, mesh: Mesh) -> Callable[[dict], Published] | None:
    """The publication of a teacher that writes hints and is another model."""
    if writer is None or not derived.teacher_model(config):
        return None
    weights = jax.eval_shape(lambda: params_of(Decoder(writer.model, rngs=nnx.Rngs(0))))
    return publisher(specs.publication_spec(config, writer.model), weights, mesh)


# -- a step that nobody runs ------------------------------------------------------------------------------------------


class AbstractStep(NamedTuple):
    """A step as shapes: what it would be called with."""

    programs: StepPrograms
    state: TrainState
    frozen: Frozen
    asked: Asked

    @property
    def alive(self) -> tuple:
        """What lives on the devices while any of its programs runs."""
        return self.state, self.frozen

    def trace(self, call: Callable[[Program], Any]) -> Rows:
        """Calls `call` with every program in turn, which returns abstract outputs; the rows of the update.

        Of a step with refills there is one: its programs are those of the first rollout, with more beside them. Of one
        with hints there is one rollout, too, with prompts as wide as the others.
        """
        keys = abstract_of(step_keys(0, 0))
        step = self.programs.step(self.state, self.frozen, self.asked, keys, call=call)
        forest = next(step).forest
        if self.programs.refills:
            step.send(Refill(self.asked, keys.rollout))
            forest = step.send(jax.ShapeDtypeStruct(forest.prompt_len_P.shape, "int32")).forest
        numbers_R = jax.ShapeDtypeStruct(forest.length_R.shape, "float32")
        if (hints := self.programs.hints) is not None:
            self._hinted(step, forest, keys, writes=hints.writer is not None)
        scored = step.send(Judged(numbers_R, dict.fromkeys(self.programs.judged, numbers_R)))
        next(step)
        return scored.rows

    def _hinted(self, step: Generator[Any, Any, None], forest: Forest, keys: Keys, *, writes: bool) -> None:
        """One rollout with hints, with a teacher's before it where that writes them."""
        asked = self.asked
        if writes:
            assert asked.gold.shown_PS is not None and asked.gold.shown_len_P is not None
            step.send(Ask(asked.gold.shown_PS, asked.gold.shown_len_P, keys.rollout, writes=True))
        begin_PH, begin_len_P = asked.prompt_PS, asked.prompt_len_P
        fresh = step.send(Ask(begin_PH, begin_len_P, keys.rollout)).forest
        take_R: Any = jax.ShapeDtypeStruct(forest.length_R.shape, "int32")
        step.send(Replace(fresh, begin_PH, begin_len_P, take_R))

    def rows(self) -> Rows:
        """Shapes of the rows of the update; nothing is compiled."""
        return self.trace(lambda p: jax.eval_shape(lambda *args: p.function(*args, **p.kwargs), *p.args))


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
