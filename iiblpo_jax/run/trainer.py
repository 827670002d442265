"""A run in memory: the model and everything around it that has a life, and one step of the method.

train.py drives it; a notebook can too:

    trainer = Trainer(config, workdir)
    metrics, columns = trainer.step(1)

`steps` is the loop that a run wants. The rollout of step n + 1 is dispatched behind the update of step n; while the
device is busy with it, the host reads what step n was:

    device  rollout n | inform n | score, update n, publish | rollout n+1                | inform n+1
    host    (waits)     verify n   dispatch all of it        metrics, log, checkpoint of n  verify n+1
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.derived import group_size
from iiblpo_jax.data.pipeline import PromptBatch, PromptPipeline
from iiblpo_jax.data.registry import make_tasks
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.latents import ensure_latents
from iiblpo_jax.latents.continuations import training_questions
from iiblpo_jax.latents.storage import METRICS
from iiblpo_jax.model.decoder import cast, params_of
from iiblpo_jax.model.files.fingerprint import fingerprint
from iiblpo_jax.model.files.loading import load_model
from iiblpo_jax.planning.memory import check_fits, device_limit, measure_step, memory_table
from iiblpo_jax.results.evaluation import Evaluator, evaluation_tasks
from iiblpo_jax.rewards.together import make_scorer, score_together
from iiblpo_jax.rollout.engine import rollout
from iiblpo_jax.rollout.forest import Forest, response_tokens
from iiblpo_jax.rollout.marker import MarkerTable, marker_table
from iiblpo_jax.rollout.publication import Published, publisher
from iiblpo_jax.rollout.solved import gold_of
from iiblpo_jax.run.checkpoints import Checkpoints, check_writable
from iiblpo_jax.run.in_flight import PendingRollout, PendingUpdate, scored_metrics, updated_metrics
from iiblpo_jax.run.replay import examine, finding_table, load_batch, save_batch
from iiblpo_jax.run.rollout_log import log_columns
from iiblpo_jax.step import specs
from iiblpo_jax.step.inform import inform
from iiblpo_jax.step.programs import StepPrograms, abstract_of, abstract_rows
from iiblpo_jax.step.score import score
from iiblpo_jax.update.epochs import make_update
from iiblpo_jax.update.gradient import MinibatchGradient
from iiblpo_jax.update.optimizer import make_optimizer
from iiblpo_jax.update.state import init_state


class Trainer:
    """Policy, reference, latents, data, verifiers, optimizer state and checkpoints of one run.

    Attributes:
      state: TrainState after the last finished step; `state.params['policy']` is the model being trained.
      model_config, tokenizer: of the policy.

    Raises:
      InputError: whatever the config, the files or the workdir get wrong, before anything is compiled.
    """

    def __init__(self, config, workdir: Path | str, *, console: Console | None = None, devices: list | None = None):
        self.config = config
        workdir = self._workdir = Path(workdir)
        console = console or Console()
        check_writable(workdir)

        # --- model, tasks, data
        self._mesh = mesh = meshes.make_mesh(config.mesh, prompts=config.train.prompts_per_step, devices=devices)
        specs.check_mesh(config, mesh)
        model, self.tokenizer = load_model(config.model.path)
        self.model_config = model.config
        weighted = make_tasks(config.task, seed=config.data.seed)
        tasks = [task for task, _ in weighted]
        specs.check_positions(config, self.model_config, tasks, self.tokenizer)
        specs.check_attention(config, self.model_config, mesh)
        self._answer_width = specs.answer_width(tasks, self.tokenizer)
        self.pipeline = self._pipeline(weighted)
        if self.pipeline.dropped:
            console.print(f"{self.pipeline.dropped} prompts longer than rollout.max_prompt are left out")
        evaluated = evaluation_tasks(config, tasks)
        self.scorer = make_scorer(config, [*tasks, *(task for task in evaluated if task not in tasks)])
        self._evaluator = Evaluator(config, evaluated, self.model_config, self.tokenizer, self.scorer, mesh=mesh)
        self._markers = {task.name: self._marker_table(task.marker) for task in tasks}

        # --- programs
        method = specs.objective(config)
        self._rollout_spec = specs.rollout_spec(config, self.model_config, self.tokenizer.stop_ids, mesh=mesh)
        self._score_spec = specs.score_spec(config, self.model_config, self.tokenizer, method, mesh=mesh)
        settings = specs.update_settings(config, method, mesh=mesh)
        steps = config.train.steps * settings.minibatches * settings.epochs
        optimizer = make_optimizer(config.optim, total_steps=steps)

        # --- weights: a sharded policy, a frozen copy as the reference, latents from the reference
        policy = meshes.shard_params(params_of(model), meshes.param_shardings(model, mesh, meshes.TRAIN))
        publication = specs.publication_spec(config, self.model_config)
        self._publish = publisher(publication, policy, mesh)
        self._reference = jax.tree.map(jnp.copy, cast(policy, config.model.dtype))
        self._fingerprint = fingerprint(self.model_config, policy)
        self._cvae, psa = self._latents(workdir, weighted, console)
        params = {"policy": policy} if psa is None else {"policy": policy, "psa": psa}
        self.state = self._placed(init_state(params, optimizer))
        placement = jax.tree.map(lambda x: x.sharding, self.state)
        self._gradient = MinibatchGradient(
            settings=settings, objective=method, model_config=self.model_config, shardings=placement.params
        )
        self._update = make_update(settings, method, self.model_config, optimizer, state_shardings=placement)
        self._checkpoints = Checkpoints(
            workdir, keep=config.checkpoint.keep, every=config.checkpoint.every, best=config.checkpoint.best
        )

        # --- where the run is: data position and counters after the last finished step
        self._position = self.pipeline.get_state()
        self._counts = {"bad_steps": 0, "zero_std_steps": 0}
        self._pending: PendingRollout | None = None
        self._score: float | None = None  # of the last evaluation, if it was of this state
        self._finished_at = self._checkpoint_seconds = 0.0

    # -- steps ------------------------------------------------------------------------------------------------------

    def step(self, step: int) -> tuple[dict, dict | None]:
        """Step number `step` (from 1), alone: samples, scores, updates, and waits for all of it.

        Returns:
          Metrics, and the columns of the rollout log where one is due (`log.rollouts`).

        Raises:
          InputError: train.max_bad_steps updates in a row were not finite.
        """
        [(_, metrics, columns)] = self.steps(step, step)
        return metrics, columns

    def steps(
        self, first: int, last: int, *, stop: Callable[[], bool] = lambda: False
    ) -> Iterator[tuple[int, dict, dict | None]]:
        """Steps `first` to `last`, the next one always under way: yields (step, metrics, columns) as `step` does.

        Between two of them `state`, `evaluate` and `save` are those after the step just given. The same numbers as from
        calls of `step`, to the bit.

        Args:
          first, last: steps are numbered from 1.
          stop: asked once a step, but the last, whether to end with it; then no further rollout is started.

        Raises:
          InputError: train.max_bad_steps updates in a row were not finite.
        """
        if first > last:
            return
        self._finished_at = time.monotonic()
        self._pending = self._start(first)
        try:
            for step in range(first, last + 1):
                update = self._finish()
                if step < last and not stop():
                    self._pending = self._start(step + 1)
                metrics, columns = self._outcome(update)
                del update  # with it go the rows of the update
                yield step, metrics, columns
                if self._pending is None:
                    return
        finally:  # a rollout that nobody will finish: its prompts are the next ones again
            self._pending = None
            self.pipeline.set_state(self._position)

    def evaluate(self) -> dict:
        """Held-out metrics of the policy as it is, and the seconds they took; waits for a rollout under way first."""
        if self._pending is not None:
            self._pending.wait()
        began = time.monotonic()
        metrics = self._evaluator(self._published())
        right = [value for name, value in metrics.items() if name.endswith("/pass@1")]
        self._score = math.fsum(right) / len(right)
        return metrics | {"time/eval_s": time.monotonic() - began}

    def memory_report(self, console: Console) -> None:
        """Prints what every program of a step needs; compiles all of them.

        Raises:
          InputError: one needs more than a device has.
        """
        programs, limit = measure_step(self._programs(), self._update), device_limit()
        console.print(memory_table(programs, limit))
        check_fits(programs, limit)

    def replay(self, path: str, console: Console) -> None:
        """Looks at the rows of a bad step (replay.py) under the weights as they are; prints a table, changes nothing.

        Raises:
          InputError: the file cannot be read, or was saved with another config.
        """
        step, rows, key = load_batch(path, abstract_rows(self._programs()))
        console.print(finding_table(examine(self._gradient, self.state.params, rows, key, step=step), rows))

    def latent_metrics(self) -> dict:
        """What the latent stage measured (`latent/*`); empty without a latent."""
        return {} if self._cvae is None else json.loads((self._workdir / "latent" / METRICS).read_text())

    # -- resuming ---------------------------------------------------------------------------------------------------

    def restore(self) -> int | None:
        """Loads the newest checkpoint (params, optimizer, data position): the step it was taken after, or None."""
        self._checkpoints.remove_unfinished()
        abstract = abstract_of(self.state)
        if self._checkpoints.latest() is None:
            return None
        self.state = None  # its memory is the restored one's
        step, self.state, self._position, extra = self._checkpoints.restore_latest(abstract)
        self.pipeline.set_state(self._position)
        if extra["model"] != self._fingerprint:
            raise InputError(
                f"the checkpoints of this workdir grew from another model than {self.config.model.path}; use the "
                "model the run began with, or another --workdir"
            )
        self._counts = extra["counts"]
        return step

    def save(self, step: int, *, force: bool = False) -> None:
        """Starts a checkpoint after `step` if one is due; the next step's metrics say how long that kept it waiting.

        None is due after a bad step: weights that give no finite update are nothing to resume from.
        """
        if self._counts["bad_steps"] and not force:
            return
        began = time.monotonic()
        extra = {"counts": self._counts, "model": self._fingerprint}
        self._checkpoints.save(step, self.state, iterator=self._position, extra=extra, score=self._score, force=force)
        self._checkpoint_seconds = time.monotonic() - began

    def close(self) -> int | None:
        """Waits for the last checkpoint and ends the verifiers; the newest step that can be resumed from."""
        self.scorer.close()
        return self._checkpoints.close()

    # -- pieces of the set-up -----------------------------------------------------------------------------------------

    def _pipeline(self, tasks) -> PromptPipeline:
        return PromptPipeline(
            tasks,
            self.tokenizer,
            prompts_per_step=self.config.train.prompts_per_step,
            max_prompt=self.config.rollout.max_prompt,
            max_answer=self._answer_width,
            seed=self.config.data.seed,
        )

    def _marker_table(self, marker: str) -> MarkerTable:
        pieces = self.tokenizer.token_bytes()
        return marker_table(pieces + [b""] * (self.model_config.vocab_size - len(pieces)), marker)

    def _latents(self, workdir: Path, tasks, console: Console):
        """(CVAE weights, PSA weights), trained first where the workdir has none; (None, None) without a latent."""
        if not specs.uses_latents(self.config):
            return None, None

        def questions():
            return training_questions(self._pipeline(tasks), self.tokenizer, self.config.latent.prompts)

        cvae, psa = ensure_latents(
            self.config,
            workdir / "latent",
            self.model_config,
            self._reference,
            questions,
            stop_ids=self.tokenizer.stop_ids,
            console=console,
            mesh=self._mesh,
        )
        shardings = meshes.param_shardings(psa, self._mesh, meshes.TRAIN)
        return self._placed(params_of(cvae)), meshes.shard_params(params_of(psa), shardings)

    def _placed(self, state):
        """The state with every leaf on the mesh: what is there stays where it is, the rest goes on every device."""
        everywhere = jax.sharding.NamedSharding(self._mesh, jax.sharding.PartitionSpec())

        def here(x):
            return getattr(x.sharding, "mesh", None) == self._mesh

        return jax.tree.map(lambda x: x if here(x) else jax.device_put(x, everywhere), state)

    def _programs(self) -> StepPrograms:
        batch = next(self.pipeline)
        self.pipeline.set_state(self._position)
        return StepPrograms(
            state=self.state,
            reference=self._reference,
            cvae=self._cvae,
            inputs=self._inputs(batch),
            markers=tuple(self._markers.values()),
            rollout_spec=self._rollout_spec,
            score_spec=self._score_spec,
            publish=self._publish,
        )

    # -- pieces of a step ---------------------------------------------------------------------------------------------

    def _start(self, step: int) -> PendingRollout:
        """Dispatches the rollout of a step and the reference forwards over it."""
        key = jax.random.fold_in(jax.random.key(self.config.train.seed), step)
        rollout_key, select_key, update_key = jax.random.split(key, 3)
        batch = next(self.pipeline)
        inputs, began = self._inputs(batch), time.monotonic()
        markers = tuple(self._markers.values())
        forest, stats = rollout(
            self._published(),
            *inputs["prompt"],
            rollout_key,
            spec=self._rollout_spec,
            latents=self._latent_params(),
            gold=gold_of(self._rollout_spec.branching, markers, inputs),
        )
        information = inform(
            self._reference,
            forest,
            markers,
            inputs["marker_P"],
            inputs["cue"],
            inputs["answer"],
            spec=self._score_spec,
        )
        return PendingRollout(
            step=step,
            batch=batch,
            forest=forest,
            stats=stats,
            information=information,
            select_key=select_key,
            update_key=update_key,
            position=self.pipeline.get_state(),
            began=began,
        )

    def _finish(self) -> PendingUpdate:
        """Waits for the rollout under way, verifies it, and dispatches score and update; `state` is the new one."""
        done, self._pending = self._pending, None
        done.began = max(done.began, self._finished_at)
        rollout_s, arrived = done.wait(), time.monotonic()
        rewards, texts, counted = self._verify(done.forest, done.batch)
        dispatched = time.monotonic()
        reward_R = meshes.to_devices(rewards, self._mesh, "batch")
        scored = score(done.forest, reward_R, done.information, done.select_key, self.state.step, spec=self._score_spec)
        known = scored_metrics(scored, done.stats)  # before the update: the device works in the order of dispatch
        every = self.config.log.rollouts
        log = per_row = {}
        if every and done.step % every == 0:
            estimator = self._score_spec.estimator
            log, per_row = log_columns(done.batch, done.forest, texts, rewards, done.information, scored, estimator)
        self.state, updated = self._update(self.state, scored.rows, done.update_key)
        self._position, self._score = done.position, None
        self._checkpoints.prepare(done.step, self.state)
        return PendingUpdate(
            step=done.step,
            rows=scored.rows,
            key=done.update_key,
            counted=counted,
            scored=known,
            updated=updated_metrics(updated, self.state.params),
            log=log,
            per_row=per_row,
            rollout_s=rollout_s,
            reward_s=dispatched - arrived,
            dispatched=dispatched,
        )

    def _outcome(self, update: PendingUpdate) -> tuple[dict, dict | None]:
        """Waits for an update: the step's metrics and log columns."""
        metrics = update.metrics()
        began, self._finished_at = self._finished_at, time.monotonic()
        bad, flat = metrics["update/skipped"] > 0, metrics["reward/frac_zero_std"] == 1.0
        self._counts = {
            "bad_steps": self._counts["bad_steps"] + 1 if bad else 0,
            "zero_std_steps": self._counts["zero_std_steps"] + int(flat),
        }
        if self._counts["bad_steps"] >= self.config.train.max_bad_steps:
            path = save_batch(self._workdir, update.step, update.rows, update.key)
            raise InputError(
                f"step {update.step}: {self._counts['bad_steps']} updates in a row had a loss, gradient or ratio that "
                f"is not finite or exploded (--replay={path} shows the rows); lower optim.lr or optim.clip_norm and "
                "resume from the last checkpoint"
            )
        metrics |= {
            "update/bad_steps": self._counts["bad_steps"],
            "reward/zero_std_steps": self._counts["zero_std_steps"],
            "time/checkpoint_s": self._checkpoint_seconds,
            "time/step_s": self._finished_at - began,
        }
        return metrics, update.columns()

    def _published(self) -> Published:
        """The policy as decoding wants it."""
        return self._publish(self.state.params["policy"])

    def _latent_params(self) -> dict | None:
        return None if self._cvae is None else {"psa": self.state.params["psa"], "cvae": self._cvae}

    def _inputs(self, batch: PromptBatch) -> dict:
        """The arrays of a batch: prompts for the rollout, task, answer cue and gold answer for the reference model."""
        names = list(self._markers)
        arrays = {
            "prompt": (batch.tokens_PS, batch.length_P),
            "marker_P": np.array([names.index(problem.task) for problem in batch.problems], np.int32),
            "cue": (batch.cue_PQ, batch.cue_length_P),
            "answer": (batch.answer_PA, batch.answer_length_P),
        }
        return meshes.to_devices(arrays, self._mesh, "batch")

    def _verify(self, forest: Forest, batch: PromptBatch):
        texts = self.tokenizer.decode_batch(response_tokens(forest))
        problems = [problem for problem in batch.problems for _ in range(group_size(self.config))]
        grades = score_together(self.scorer, problems, texts)
        counted = {f"reward/verifier_{name}": count for name, count in grades.counts.items()}
        counted["time/verifier_s"] = float(np.nansum(grades.columns["seconds"]))
        return grades.rewards, texts, counted
