"""What every stage of a run starts from: devices, the policy on them, its tokenizer, its tasks, its latents."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich.console import Console

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.defaults import RunConfig
from iiblpo_jax.config.derived import group_size, shows_answer, teacher_model, without_replacement
from iiblpo_jax.data.pipeline import PromptPipeline
from iiblpo_jax.data.prompts import prompt_end
from iiblpo_jax.data.registry import make_tasks
from iiblpo_jax.data.task import Task
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.latents import ensure_latents
from iiblpo_jax.latents.continuations import training_questions
from iiblpo_jax.model.adapters.adapted import Adapted, Weights
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import cast, params_of
from iiblpo_jax.model.files.loading import load_model
from iiblpo_jax.model.steering.code_tokens import with_codes
from iiblpo_jax.model.tokens.tokenizer import Tokenizer
from iiblpo_jax.reward_models.storage import Made, load_reward_model
from iiblpo_jax.run import recorded
from iiblpo_jax.run.adapters import first_adapter, frozen_base, loaded_dtype
from iiblpo_jax.run.hinted import Hinting
from iiblpo_jax.run.placing import placing
from iiblpo_jax.run.prompt_date import keep_date
from iiblpo_jax.run.sources import Prompts, Recorded, Source
from iiblpo_jax.step import specs
from iiblpo_jax.step.teacher import check_teacher


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
    """A config and what it names, loaded.

    Attributes:
      config: of the run.
      mesh: devices.
      model, tokenizer: of the policy.
      tasks: (task, weight) pairs to train on.
      answer_width: tokens of the longest gold answer that a batch holds.
      policy: the weights the model has, split over the mesh as training has them: float32 master weights, or what the
        base of an adapter is made of.
    """

    config: RunConfig
    mesh: Mesh
    model: ModelConfig
    tokenizer: Tokenizer
    tasks: list[tuple[Task, float]]
    answer_width: int
    policy: dict

    def pipeline(self) -> PromptPipeline:
        """The prompts of the run, from the first one on."""
        return PromptPipeline(
            self.tasks,
            self.tokenizer,
            prompts_per_step=self.config.train.prompts_per_step,
            max_prompt=self.config.rollout.max_prompt,
            max_answer=self.answer_width,
            seed=self.config.data.seed,
            shown=shows_answer(self.config),
        )

    def source(self, workdir: Path) -> Source:
        """What the steps of the run in `workdir` learn from, from the first one on.

        Raises:
          InputError: data.recorded names no file, or a file that does not fit (recorded.read_groups, sources.Recorded).
        """
        tasks = [task for task, _ in self.tasks]
        turns = self.config.turns.most > 0
        place = placing(tasks, self.tokenizer, self.model.vocab_size, self.mesh, turns=turns)
        if not self.config.data.recorded:
            pipeline = self.pipeline()
            self._check_shown(pipeline.shown_width)
            return Prompts(pipeline, place)
        form, rollout = self._recorded_form(), self.config.rollout
        files = recorded.find(self.config.data.recorded, workdir)
        return Recorded(
            [group for path in files for group in recorded.read_groups(path, form)],
            tasks,
            self.tokenizer,
            place,
            prompts_per_step=self.config.train.prompts_per_step,
            max_prompt=rollout.max_prompt,
            max_answer=self.answer_width,
            max_tokens=rollout.max_tokens,
            seed=self.config.data.seed,
            shown=shows_answer(self.config),
        )

    def hinting(self, shown_width: int) -> Hinting | None:
        """How the run explores with hints; None where it does not. `shown_width` is that of its source.

        Raises:
          InputError: no training problem has what hints are made of, or the model has no positions for them.
        """
        config, hint = self.config, self.config.hint
        if not hint.attempts:
            return None
        width = (shown_width or config.rollout.max_prompt) + hint.tokens
        tasks = {task.name: task for task, _ in self.tasks}
        found = Hinting(
            attempts=hint.attempts,
            replaced=hint.replaced,
            source=hint.source,
            tokens=hint.tokens,
            width=width,
            seed=config.train.seed,
            tasks=tasks,
            tokenizer=self.tokenizer,
            mesh=self.mesh,
        )
        found.check()
        if (need := width + config.rollout.max_tokens) > self.model.max_positions:
            raise InputError(
                f"hint.tokens = {hint.tokens} make prompts of up to {width} tokens, which with rollout.max_tokens = "
                f"{config.rollout.max_tokens} exceed the model's {self.model.max_positions} positions; lower one by "
                f"{need - self.model.max_positions}"
            )
        return found

    def _check_shown(self, width: int) -> None:
        """Raises InputError where the longest prompt with its answer leaves a response no room."""
        longest, most = self.config.rollout.max_tokens, self.model.max_positions
        if width + longest > most:
            raise InputError(
                f"teacher.kind = answer reads prompts of up to {width} tokens with their answers, which with "
                f"rollout.max_tokens = {longest} exceed the model's {most} positions; lower one by "
                f"{width + longest - most}, or use another teacher.kind"
            )

    def teacher(self) -> dict:
        """The weights of a teacher that is another model, by its name among the readers; {} without one.

        Raises:
          InputError: it cannot be loaded, or has another tokenizer.
        """
        if not (path := teacher_model(self.config)):
            return {}
        model, tokenizer = load_model(path, dtype=self.config.model.dtype)
        check_teacher(path, model.config, tokenizer, self.model, self.tokenizer)
        shardings = meshes.param_shardings(model, self.mesh, meshes.TRAIN)
        return {specs.TEACHER: meshes.shard_params(params_of(model), shardings)}

    def _recorded_form(self) -> recorded.Form:
        config, parent_J = self.config, specs.branching(self.config).shape.parent_J
        begins = range(0, group_size(config), len(parent_J))
        return recorded.Form(
            parent_G=tuple(-1 if parent < 0 else begin + parent for begin in begins for parent in parent_J),
            max_tokens=config.rollout.max_tokens,
            vocab=self.model.vocab_size,
            logprobs=config.update.importance_cap > 0 or config.log.logprobs,
            left=without_replacement(config),
        )

    def reference(self) -> dict:
        """A copy of the policy in the dtype of the computation, which nobody donates."""
        return jax.tree.map(jnp.copy, cast(self.policy, self.config.model.dtype))

    def base(self) -> Adapted | None:
        """The frozen weights that an adapter is trained beside, with it off; None where the policy itself is."""
        adapter = specs.lora(self.config)
        return adapter and frozen_base(self.config, self.model, adapter, self.policy)

    def trained(self) -> dict:
        """What training changes, as params of its state: the policy, or an adapter.

        Raises:
          InputError: lora.path is no adapter of this model with lora.rank, lora.alpha and lora.targets.
        """
        adapter = specs.lora(self.config)
        if adapter is None:
            return {"policy": self.policy}
        return {"lora": first_adapter(self.config, self.model, adapter, mesh=self.mesh)}

    def latents(self, directory: Path, reference: dict, console: Console):
        """(CVAE or Codes weights, PSA weights), trained first where the directory has none; on the mesh.

        Raises:
          InputError: those that are there belong to another model, or to other settings.
        """

        def questions():
            return training_questions(self.pipeline(), self.tokenizer, self.config.latent.prompts)

        cvae, psa = ensure_latents(
            self.config,
            directory,
            self.model,
            reference,
            questions,
            stop_ids=self.tokenizer.stop_ids,
            never_ids=self.tokenizer.textless_ids(self.model.vocab_size),
            console=console,
            mesh=self.mesh,
        )
        shardings = meshes.param_shardings(psa, self.mesh, meshes.TRAIN)
        return self.placed(params_of(cvae)), meshes.shard_params(params_of(psa), shardings)

    def reward_model(self, reference: Weights) -> dict:
        """That of reward.model by its reader's name, {} without one: on the mesh, its backbone as the policy lies in
        training; a frozen one is `reference`.

        Raises:
          InputError: see `load_reward_model`.
        """
        if not self.config.reward.model:
            return {}
        knobs, folder = self.config.reward_model, Path(self.config.reward.model)
        made = Made(self.model, self.policy, self.tokenizer)
        found = load_reward_model(folder, made, z=knobs.z, backbone=knobs.backbone, dtype=self.config.model.dtype)
        backbone = reference
        if knobs.backbone == "trained":
            assert isinstance(found.backbone, dict)
            backbone = meshes.shard_params(found.backbone, jax.tree.map(lambda w: w.sharding, self.policy))
        return {specs.REWARD: self.placed(dataclasses.replace(found, backbone=backbone))}

    def placed(self, tree):
        """The tree with every leaf on the mesh: what is there stays where it is, the rest goes on every device."""
        return meshes.placed(tree, self.mesh)


def set_up(config: RunConfig, workdir: Path | None = None, *, devices: list | None = None) -> Setup:
    """Loads what a config names and puts the policy on the devices.

    Args:
      config: of the run.
      workdir: of the run, which keeps the day that chat templates are told; None = today.
      devices: None = all of all processes.

    Raises:
      InputError: whatever the config, the model or the data get wrong, before anything is compiled.
    """
    mesh = meshes.make_mesh(config.mesh, prompts=config.train.prompts_per_step, devices=devices)
    model, tokenizer = load_model(config.model.path, dtype=jnp.dtype(loaded_dtype(config)))
    if workdir is not None:
        tokenizer = keep_date(tokenizer, workdir)
    weighted = make_tasks(config.task, seed=config.data.seed)
    tasks = [task for task, _ in weighted]
    if config.codes.n:
        model = with_codes(model, config.codes.n, end=prompt_end(tasks, tokenizer), noise=config.codes.noise)
    specs.check(config, model.config, mesh, tasks=tasks, tokenizer=tokenizer)
    return Setup(
        config=config,
        mesh=mesh,
        model=model.config,
        tokenizer=tokenizer,
        tasks=weighted,
        answer_width=specs.answer_width(tasks, tokenizer),
        policy=meshes.shard_params(params_of(model), meshes.param_shardings(model, mesh, meshes.TRAIN)),
    )
