"""A run in memory: the model and everything around it that has a life, and one step of the method.

train.py drives it; a notebook can too:

    trainer = Trainer(config, workdir)
    metrics, columns = trainer.step(1)
"""

import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from iiblpo_jax import mesh as meshes
from iiblpo_jax import specs
from iiblpo_jax.bottleneck import MarkerTable, marker_table
from iiblpo_jax.checkpoints import Checkpoints
from iiblpo_jax.configuration import group_size, kept_per_prompt
from iiblpo_jax.data.pipeline import PromptBatch, PromptPipeline
from iiblpo_jax.data.registry import make_tasks
from iiblpo_jax.errors import InputError
from iiblpo_jax.evaluation import Evaluator, evaluation_tasks, make_scorer
from iiblpo_jax.forest import Forest, response_tokens
from iiblpo_jax.latents import ensure_latents
from iiblpo_jax.latents.continuations import training_questions
from iiblpo_jax.latents.diagnostics import gain_norm
from iiblpo_jax.latents.storage import METRICS, fingerprint
from iiblpo_jax.model.decoder import cast, params_of
from iiblpo_jax.model.loading import load_model
from iiblpo_jax.optimizer import make_optimizer
from iiblpo_jax.rollout.engine import RolloutStats, rollout
from iiblpo_jax.scoring import CORRECT, Scored, inform, score
from iiblpo_jax.update import init_state, make_update
from iiblpo_jax.update_rows import UpdateSettings


class Trainer:
    """Policy, reference, latents, data, verifiers, optimizer state and checkpoints of one run.

    Attributes:
      state: TrainState; `state.params['policy']` is the model being trained.
      model_config, tokenizer: of the policy.

    Raises:
      InputError: whatever the config, the files or the workdir get wrong, before anything is compiled.
    """

    def __init__(self, config, workdir: Path | str, *, console: Console | None = None):
        self.config = config
        workdir = self._workdir = Path(workdir)
        console = console or Console()

        # --- model, tasks, data
        self._mesh = meshes.make_mesh(config.mesh, prompts=config.train.prompts_per_step)
        model, self.tokenizer = load_model(config.model.path)
        self.model_config = model.config
        weighted = make_tasks(config.task, seed=config.data.seed)
        tasks = [task for task, _ in weighted]
        specs.check_positions(config, self.model_config, tasks, self.tokenizer)
        self._answer_width = specs.answer_width(tasks, self.tokenizer)
        self.pipeline = self._pipeline(weighted)
        if self.pipeline.dropped:
            console.print(f"{self.pipeline.dropped} prompts longer than rollout.max_prompt are left out")
        evaluated = evaluation_tasks(config, tasks)
        self.scorer = make_scorer(config, [*tasks, *(task for task in evaluated if task not in tasks)])
        self._evaluator = Evaluator(config, evaluated, self.model_config, self.tokenizer, self.scorer)
        self._markers = {task.name: self._marker_table(task.marker) for task in tasks}

        # --- programs
        method = specs.objective(config)
        self._rollout_spec = specs.rollout_spec(config, self.model_config, self.tokenizer.stop_ids)
        self._score_spec = specs.score_spec(config, self.model_config, self.tokenizer, method)
        settings = UpdateSettings.from_config(config, group_size=kept_per_prompt(config))
        steps = config.train.steps * settings.minibatches * settings.epochs
        optimizer = make_optimizer(config.optim, total_steps=steps)

        # --- weights: a sharded policy, a frozen copy as the reference, latents from the reference
        shardings = meshes.param_shardings(model, self._mesh, meshes.TRAIN)
        policy = meshes.shard_params(params_of(model), shardings)
        self._reference = jax.tree.map(jnp.copy, cast(policy, config.model.dtype))
        self._fingerprint = fingerprint(self.model_config, policy)
        self._cvae, psa = self._latents(workdir, weighted, console)
        params = {"policy": policy} if psa is None else {"policy": policy, "psa": psa}
        self.state = self._placed(init_state(params, optimizer))
        placement = jax.tree.map(lambda x: x.sharding, self.state)
        self._update = make_update(settings, method, self.model_config, optimizer, state_shardings=placement)
        self._checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep, every=config.checkpoint.every)
        self._bad_steps, self._checkpoint_seconds = 0, 0.0

    # -- one step ---------------------------------------------------------------------------------------------------

    def step(self, step: int) -> tuple[dict, dict | None]:
        """Step number `step` (from 1): samples, scores, updates.

        Returns:
          Metrics, and the columns of the rollout log where one is due (`log.rollouts`).

        Raises:
          InputError: train.max_bad_steps updates in a row were not finite.
        """
        clock = Clock()
        key = jax.random.fold_in(jax.random.key(self.config.train.seed), step)
        rollout_key, select_key, update_key = jax.random.split(key, 3)
        batch = next(self.pipeline)

        forest, stats = rollout(
            self._published(), jnp.asarray(batch.tokens_PS), jnp.asarray(batch.length_P), rollout_key,
            spec=self._rollout_spec, latents=self._latent_params(),
        )  # fmt: skip
        clock.lap("rollout", forest)
        information = self._inform(forest, batch)  # runs on the device while the host verifies
        rewards, texts, verifier = self._verify(forest, batch)
        clock.lap("reward")
        scored = score(forest, jnp.asarray(rewards), information, select_key, self.state.step, spec=self._score_spec)
        clock.lap("score", scored)
        self.state, update_metrics = self._update(self.state, scored.rows, update_key)
        clock.lap("update", self.state)

        metrics = _floats(scored.metrics | update_metrics) | verifier | self._counters(stats, scored, clock)
        self._count_bad(metrics["update/skipped"] > 0, step, scored)
        every = self.config.log.rollouts
        due = every and step % every == 0
        return metrics, self._columns(batch, forest, texts, rewards, information, scored) if due else None

    def evaluate(self) -> dict:
        """Held-out metrics of the policy as it is, and the seconds they took."""
        clock = Clock()
        metrics = self._evaluator(self._published())
        clock.lap("eval")
        return metrics | {"time/eval_s": clock.seconds["eval"]}

    def latent_metrics(self) -> dict:
        """What the latent stage measured (`latent/*`); empty without a latent."""
        return {} if self._cvae is None else json.loads((self._workdir / "latent" / METRICS).read_text())

    # -- resuming ---------------------------------------------------------------------------------------------------

    def restore(self) -> int | None:
        """Loads the newest checkpoint (params, optimizer, data position): the step it was taken after, or None."""
        found = self._checkpoints.restore_latest(self.state)
        if found is None:
            return None
        step, self.state, iterator, extra = found
        self.pipeline.set_state(iterator)
        if extra["model"] != self._fingerprint:
            raise InputError(
                f"the checkpoints of this workdir grew from another model than {self.config.model.path}; use the "
                "model the run began with, or another --workdir"
            )
        self._bad_steps = extra["bad_steps"]
        return step

    def save(self, step: int, *, force: bool = False) -> None:
        """Starts a checkpoint after `step` if one is due; the next step's metrics say how long that kept it waiting."""
        clock = Clock()
        extra = {"bad_steps": self._bad_steps, "model": self._fingerprint}
        self._checkpoints.save(step, self.state, iterator=self.pipeline.get_state(), extra=extra, force=force)
        clock.lap("checkpoint")
        self._checkpoint_seconds = clock.seconds["checkpoint"]

    def close(self) -> None:
        """Waits for the last checkpoint and ends the verifiers."""
        self._checkpoints.close()
        self.scorer.close()

    # -- pieces of the set-up -----------------------------------------------------------------------------------------

    def _pipeline(self, tasks) -> PromptPipeline:
        return PromptPipeline(
            tasks, self.tokenizer, prompts_per_step=self.config.train.prompts_per_step,
            max_prompt=self.config.rollout.max_prompt, max_answer=self._answer_width, seed=self.config.data.seed,
            process_index=jax.process_index(), process_count=jax.process_count(),
        )  # fmt: skip

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
            self.config, workdir / "latent", self.model_config, self._reference, questions,
            stop_ids=self.tokenizer.stop_ids, console=console,
        )  # fmt: skip
        return params_of(cvae), params_of(psa)

    def _placed(self, state):
        """The state with every leaf on the mesh: moments beside their weights already, the rest on every device."""
        everywhere = jax.sharding.NamedSharding(self._mesh, jax.sharding.PartitionSpec())
        here = lambda x: getattr(x.sharding, "mesh", None) == self._mesh  # noqa: E731
        return jax.tree.map(lambda x: x if here(x) else jax.device_put(x, everywhere), state)

    # -- pieces of a step ---------------------------------------------------------------------------------------------

    def _published(self) -> dict:
        """The policy as decoding wants it: cast to rollout.dtype."""
        return cast(self.state.params["policy"], self.config.rollout.dtype)

    def _latent_params(self) -> dict | None:
        return None if self._cvae is None else {"psa": self.state.params["psa"], "cvae": self._cvae}

    def _inform(self, forest: Forest, batch: PromptBatch):
        names = list(self._markers)
        marker_P = jnp.array([names.index(problem.task) for problem in batch.problems])
        return inform(
            self._reference, forest, tuple(self._markers.values()), marker_P,
            (jnp.asarray(batch.cue_PQ), jnp.asarray(batch.cue_length_P)),
            (jnp.asarray(batch.answer_PA), jnp.asarray(batch.answer_length_P)), spec=self._score_spec,
        )  # fmt: skip

    def _verify(self, forest: Forest, batch: PromptBatch):
        texts = self.tokenizer.decode_batch(response_tokens(forest))
        problems = [problem for problem in batch.problems for _ in range(group_size(self.config))]
        rewards, counts = self.scorer.score(problems, texts)
        return rewards, texts, {f"reward/verifier_{name}": count for name, count in counts.items()}

    def _counters(self, stats: RolloutStats, scored: Scored, clock: "Clock") -> dict:
        """Metrics that the host counts: tokens, slots, seconds, and the gain of PSA, which RL may be training."""
        generated, trained = int(stats.tokens), int(jnp.sum(scored.rows.mask_NT))
        counters = {
            "rollout/tokens": generated,
            "rollout/slot_utilisation": float(stats.slot_utilisation),
            "rollout/tokens_per_s": generated / clock.seconds["rollout"],
            "update/tokens_per_s": trained / clock.seconds["update"],
            "time/checkpoint_s": self._checkpoint_seconds,
            **{f"time/{name}_s": seconds for name, seconds in clock.seconds.items()},
        }
        gain = {} if self._cvae is None else {"latent/gain_norm": gain_norm(self.state.params["psa"])}
        return counters | gain

    def _count_bad(self, bad: bool, step: int, scored: Scored) -> None:
        self._bad_steps = self._bad_steps + 1 if bad else 0
        if self._bad_steps >= self.config.train.max_bad_steps:
            path = self._workdir / f"bad_step_{step:06d}.npz"
            leaves = jax.tree_util.tree_leaves_with_path(scored.rows)
            np.savez(path, **{jax.tree_util.keystr(where, simple=True, separator="."): x for where, x in leaves})
            raise InputError(
                f"step {step}: {self._bad_steps} updates in a row had a loss or gradient that is not finite (the rows "
                f"are in {path}); lower optim.lr or optim.clip_norm and resume from the last checkpoint"
            )

    def _columns(self, batch, forest: Forest, texts, rewards, information, scored: Scored) -> dict:
        count = len(texts)
        entropy_RT, own_RT = np.asarray(forest.entropy_RT), np.asarray(forest.own_RT)
        nothing = [None] * count
        likelihood = self._score_spec.estimator == "likelihood"
        return {
            "prompt_id": [problem.id for problem in batch.problems for _ in range(group_size(self.config))],
            "trajectory": list(range(count)),
            "parent": np.asarray(forest.parent_R),
            "branch_at": np.asarray(forest.branch_at_R),
            "text": texts,
            "tokens": response_tokens(forest, stop=True),
            "reward": rewards,
            "correct": rewards >= CORRECT,
            "entropy_mean": (entropy_RT * own_RT).sum(1) / np.maximum(own_RT.sum(1), 1),
            "ib_answer": np.asarray(information.answer_R) if likelihood else nothing,
            "ib_prompt": np.asarray(information.prompt_R) if likelihood else nothing,
            "ib_score": nothing if self._score_spec.estimator == "none" else np.asarray(scored.score_R),
            "kept": np.asarray(scored.kept_R),
            "advantage": np.asarray(scored.advantage_R),
            "finish": np.asarray(forest.finish_R),
        }


class Clock:
    """Seconds of consecutive phases; a lap waits for the device arrays it is given."""

    def __init__(self):
        self.seconds, self._last = {}, time.monotonic()

    def lap(self, name: str, *arrays) -> None:
        """Ends the phase `name`."""
        jax.block_until_ready(arrays)
        now = time.monotonic()
        self.seconds[name], self._last = now - self._last, now


def _floats(metrics: dict) -> dict[str, float]:
    return {name: float(value) for name, value in jax.device_get(metrics).items()}
