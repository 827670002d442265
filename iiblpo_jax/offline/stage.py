"""A run that learns from cases: the model, the order of its cases, optimizer state and checkpoints, and its loop.

device  update n       | update n + 1
host    metrics of n - 1, cases of n + 1
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config import history
from iiblpo_jax.config.derived import minibatch_mistake
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.decoder import cast, params_of
from iiblpo_jax.model.files.fingerprint import fingerprint as model_fingerprint
from iiblpo_jax.model.files.loading import load_generation_config, load_model
from iiblpo_jax.model.files.saving import check_target, save_model
from iiblpo_jax.offline.examples import Case, Encoder, rows_of
from iiblpo_jax.offline.losses.interface import CHOSEN, REJECTED, Loss
from iiblpo_jax.offline.sources import Loaded
from iiblpo_jax.offline.update import CaseGradient, make_reader, make_update
from iiblpo_jax.run.checkpoints import Checkpoints, check_writable
from iiblpo_jax.run.lock import WorkdirLock
from iiblpo_jax.run.metrics import MetricWriter, Progress
from iiblpo_jax.run.prompt_date import keep_date
from iiblpo_jax.run.stopping import StopRequest
from iiblpo_jax.step import specs
from iiblpo_jax.step.programs import abstract_of
from iiblpo_jax.update.settings import UpdateSettings
from iiblpo_jax.update.state import init_state

MODEL = "model"  # folder of the workdir: what came of it, to be used as model.path


class Stage:
    """A run in memory.

    Args:
      config, workdir: of the run.
      verb: which says so in its checkpoints.
      loss: on cases.
      find: (Loaded, workdir) -> (Source, held-out cases); called when the model is loaded and before anything is
        compiled.

    Attributes:
      state: TrainState after the last step; `state.params['policy']` is the model being trained.
      model_config, tokenizer: of the policy.
      source, heldout: what `find` found.

    Raises:
      InputError: whatever the config, the files or the workdir get wrong, before anything is compiled; another process
        is at work in the workdir.
    """

    def __init__(self, config, workdir: Path, *, verb: str, loss: Loss, find: Callable):
        if config.lora.rank:
            raise InputError(f"lora.rank = {config.lora.rank}, and {verb} trains whole weights; set lora.rank=0")
        if config.codes.n:
            raise InputError(f"codes.n = {config.codes.n} is for train, and {verb} knows no codes; set codes.n=0")
        check_writable(workdir)
        check_target(workdir / MODEL)
        self.config, self._workdir, self._verb = config, workdir, verb
        self._lock = WorkdirLock(workdir)
        self._mesh = mesh = meshes.make_mesh(config.mesh, prompts=config.train.prompts_per_step)

        # --- model and cases
        model, tokenizer = load_model(config.model.path)
        self.model_config, self.tokenizer = model.config, keep_date(tokenizer, workdir)
        specs.check_positions(config, model.config)
        specs.check_attention(config, model.config, mesh)
        never_ids = tokenizer.textless_ids(model.config.vocab_size)
        check_contrast(loss, model.config.vocab_size - len(never_ids))
        encode = encoder(config, self.tokenizer)
        loaded = Loaded(config=config, encode=encode, tokenizer=self.tokenizer, model=model.config, mesh=mesh)
        self.source, self.heldout = find(loaded, workdir)
        settings = _settings(config, self.source.group, never_ids=never_ids, mesh=mesh)

        # --- weights and programs
        policy = meshes.shard_params(params_of(model), meshes.param_shardings(model, mesh, meshes.TRAIN))
        optimizer, schedule = specs.optimizer(config), specs.schedule(config)
        self.state = meshes.placed(init_state({"policy": policy}, optimizer), mesh)
        placement = jax.tree.map(lambda x: x.sharding, self.state)
        gradient = CaseGradient(settings=settings, loss=loss, model_config=model.config, shardings=placement.params)
        self._update = make_update(gradient, optimizer, schedule, state_shardings=placement)
        self._reader = make_reader(gradient)
        self._reference = None  # the policy that the run began with, where somebody reads it
        if loss.needs_reference or self.source.of_start:
            self._reference = {"policy": jax.tree.map(jnp.copy, cast(policy, config.model.dtype))}

        # --- checkpoints
        self._began_with = model_fingerprint(model.config, policy)
        self._checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep, every=config.checkpoint.every)
        self._check_resumable()

    # -- steps --------------------------------------------------------------------------------------------------------

    def step(self, step: int) -> dict:
        """Step number `step`, dispatched: its metrics, most of them still on the device."""
        policy = self.state.params
        if self.source.of_start:
            assert self._reference is not None
            policy = self._reference
        cases, known = self.source.draw(policy["policy"], step)
        self.state, metrics = self._update(self.state, self._reference, self._placed(cases))
        return metrics | known

    def evaluate(self) -> dict[str, float]:
        """`heldout/*` of the policy as it is; empty without held-out cases.

        `loss`: negative log-likelihood, nats a token, where cases are demonstrations; else the mean log-prob of the
        responses in a role, `logp_chosen` and `logp_rejected`: nobody has trained on them.
        """
        size, cases = self.config.train.prompts_per_step, self.heldout
        found = []
        for begin in range(0, len(cases), size):
            some = list(cases[begin : begin + size])
            filled = some + some[:1] * (size - len(some))  # one shape; what fills it is not counted
            logp_R = meshes.to_host(self._reader(self.state.params, self._placed(filled)))
            found.append(np.asarray(logp_R, np.float64).reshape(size, -1)[: len(some)])
        return heldout_metrics(cases, np.concatenate(found)) if found else {}

    # -- resuming -----------------------------------------------------------------------------------------------------

    def restore(self) -> int | None:
        """Loads the newest checkpoint: the step it was taken after, or None."""
        self._checkpoints.remove_unfinished()
        if self._checkpoints.latest() is None:
            return None
        found = self._checkpoints.restore_latest(abstract_of(self.state))
        if found is None:
            return None
        step, self.state, position, _ = found
        self.source.set_state(position)
        return step

    def save(self, step: int, *, force: bool = False) -> None:
        """Starts a checkpoint after `step` if one is due."""
        extra = {"model": self._began_with, "verb": self._verb}
        self._checkpoints.save(step, self.state, iterator=self.source.get_state(), extra=extra, force=force)

    def due(self, step: int) -> bool:
        """Whether a checkpoint belongs after `step`."""
        return self._checkpoints.due(step)

    def export(self) -> Path:
        """Writes the policy to WORKDIR/model, from where model.path takes it."""
        path, generation = self._workdir / MODEL, load_generation_config(self.config.model.path)
        save_model(path, self.model_config, self.state.params["policy"], self.tokenizer, generation=generation)
        return path

    def close(self) -> int | None:
        """Waits for the last checkpoint and gives the workdir back; the newest step on disk."""
        self.source.close()
        saved = self._checkpoints.close()
        self._lock.release()
        return saved

    # -- pieces -------------------------------------------------------------------------------------------------------

    def _placed(self, cases: Sequence[Case]):
        rollout = self.config.rollout
        rows = rows_of(cases, max_prompt=rollout.max_prompt, max_tokens=rollout.max_tokens)
        return meshes.to_devices(rows, self._mesh, "batch")

    def _check_resumable(self) -> None:
        newest = self._checkpoints.newest()
        if newest is None:
            return
        verb = newest["extra"].get("verb", "train")
        if verb != self._verb:
            raise InputError(f"{self._workdir} holds a run of {verb}; give {self._verb} another --workdir")
        if newest["extra"]["model"] != self._began_with:
            raise InputError(
                f"the checkpoints of {self._workdir} grew from another model than {self.config.model.path}; use the "
                "model the run began with, or another --workdir"
            )


def heldout_metrics(cases: Sequence[Case], logp_PG: np.ndarray) -> dict[str, float]:
    """What `Stage.evaluate` says of cases and the log-probs of their responses."""
    tokens_PG = np.array([[len(example.response) for example in case] for case in cases])
    if tokens_PG.shape[1] == 1:
        return {"heldout/loss": float(-logp_PG.sum() / tokens_PG.sum())}
    roles = {"chosen": CHOSEN, "rejected": REJECTED}
    there = {name: tokens_PG[:, role] > 0 for name, role in roles.items()}
    return {f"heldout/logp_{name}": float(logp_PG[x, roles[name]].mean()) for name, x in there.items() if x.any()}


def check_contrast(loss: Loss, tokens: int) -> None:
    """Raises InputError where a loss raises and lowers as many tokens as there are."""
    if loss.contrast is not None and loss.contrast[1] >= tokens:
        raise InputError(f"offline.options.k = {loss.contrast[1]} and the policy has {tokens} tokens; use fewer")


def encoder(config, tokenizer) -> Encoder:
    """How the texts of a config become tokens."""
    return Encoder(
        tokenizer=tokenizer,
        max_prompt=config.rollout.max_prompt,
        max_tokens=config.rollout.max_tokens,
        chat=config.offline.chat,
        template_args=config.task.template_args.to_dict(),
    )


def _settings(config, group: int, *, never_ids, mesh) -> UpdateSettings:
    """How a step goes through its rows: one optimizer step, at temperature 1.

    Raises:
      InputError: the rows do not split into microbatches.
    """
    u, shards = config.update, meshes.shards(mesh)
    rows = config.train.prompts_per_step * group
    width = config.rollout.max_prompt + config.rollout.max_tokens
    pack_tokens = min(specs.pack_tokens(config, shards=shards), rows // shards * width) if u.packed else 0
    microbatch = 0 if pack_tokens else u.microbatch
    if mistake := minibatch_mistake(1, rows, unit=group, microbatch=microbatch):
        raise InputError(mistake)
    return UpdateSettings(
        never_ids=tuple(never_ids),
        pack_tokens=pack_tokens,
        attention=config.attention.impl,
        microbatch=microbatch,
        remat=u.remat,
        mesh=mesh,
        importance_cap=0.0,
        group_size=group,
        dtype=config.model.dtype,
    )


def learn(stage: Stage, *, verb: str, workdir: Path, console: Console) -> int:
    """The run, from nothing or from its last checkpoint to the model it makes; the exit status.

    Raises:
      InputError: train.max_bad_steps updates in a row were not finite; the last step is not saved.
    """
    config, total, start = stage.config, stage.config.train.steps, stage.restore()
    step = done = start or 0
    if done > total:
        raise InputError(f"{workdir} has {done} steps done and train.steps = {total}; raise it, or use another")
    if jax.process_index() == 0:
        history.keep(config, workdir, verb=verb, step=done, console=console)
    writer, rows = MetricWriter(workdir, resume_step=start), Written(stage)
    if start is None:
        writer.write(0, stage.evaluate())
    with StopRequest() as stop, writer, Progress(total, start=done, console=console) as progress:
        for step in range(done + 1, total + 1):
            metrics = stage.step(step)
            rows.write(writer, progress)  # of the step before, while this one runs
            rows.next = step, metrics
            last = step == total or stop.reached()
            evaluates = step == total or (config.eval.every and step % config.eval.every == 0)
            if evaluates or last or stage.due(step):
                rows.write(writer, progress, evaluates=evaluates)
            stage.save(step, force=last)
            if last:
                break
        saved = stage.close()
    if saved != step:
        raise InputError(f"step {step} is not saved, see above; make room in {workdir}, then the same command resumes")
    if stop.received:
        console.print(f"{stop.signal.name}: saved after step {step}; the same command resumes")
        return stop.status
    console.print(f"the model: {stage.export()}", soft_wrap=True)
    return 0


class Written:
    """The metrics of a step that is under way, until they are written down."""

    def __init__(self, stage: Stage):
        self.next: tuple[int, dict] | None = None
        self._stage, self._bad, self._at = stage, 0, time.monotonic()

    def write(self, writer: MetricWriter, progress: Progress, *, evaluates: bool = False) -> None:
        """Waits for the step and writes it, if there is one."""
        if self.next is None:
            return
        (step, metrics), self.next = self.next, None
        metrics = {name: float(value) for name, value in meshes.to_host(metrics).items()}
        now, config = time.monotonic(), self._stage.config
        seconds, self._at = now - self._at, now
        metrics |= {"time/step_s": seconds, "update/tokens_per_s": metrics["update/tokens"] / seconds}
        if evaluates:
            metrics |= self._stage.evaluate()
            self._at = time.monotonic()
        if evaluates or step % config.log.every == 0:
            writer.write(step, metrics)
        self._bad = self._bad + 1 if metrics["update/skipped"] else 0
        if self._bad >= config.train.max_bad_steps:
            raise InputError(
                f"step {step}: {self._bad} updates in a row had a loss or gradient that is not finite; lower optim.lr "
                "or optim.clip_norm and resume from the last checkpoint"
            )
        progress.update(step, loss=metrics["update/loss"], tokens_per_s=metrics["update/tokens_per_s"])
