"""A run in memory: the model and everything around it that has a life, and one step of the method.

train.py drives it; a notebook can too:

    trainer = Trainer(config, workdir)
    metrics, columns = trainer.step(1)

`steps` is the loop that a run wants. The rollout of step n + 1 is dispatched behind the update of step n; while the
device is busy with it, the host reads what step n was:

    device  rollout n | inform n | score, update n, publish | rollout n+1                | inform n+1
    host    (waits)     verify n   dispatch all of it        metrics, log, checkpoint of n  verify n+1

With train.refills a step whose prompts teach too little takes further rollouts between its verification and its score:
what they ask depends on the verdict, so the device waits for it.
"""

import json
import math
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.derived import without_replacement
from iiblpo_jax.config.validation import validate
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.latents.storage import METRICS
from iiblpo_jax.model.adapters.adapted import Adapted
from iiblpo_jax.model.files.fingerprint import fingerprint
from iiblpo_jax.planning.memory import check_fits, device_limit, measure_step, memory_table
from iiblpo_jax.results.evaluation import Evaluator, evaluation_tasks
from iiblpo_jax.rewards.plans import PLAN
from iiblpo_jax.rewards.scorer import Grades
from iiblpo_jax.rewards.together import make_scorer, score_together
from iiblpo_jax.rewards.verifier import Problem
from iiblpo_jax.rollout.conversation import Conversation, make_environments
from iiblpo_jax.rollout.forest import response_tokens
from iiblpo_jax.rollout.publication import Published
from iiblpo_jax.run import remarks
from iiblpo_jax.run.adapters import absolute, described
from iiblpo_jax.run.checkpoints import Checkpoints, check_writable
from iiblpo_jax.run.graded import Graded, Verified, first_informative, graded, with_turns
from iiblpo_jax.run.in_flight import PendingRollout, PendingUpdate, scored_metrics, updated_metrics
from iiblpo_jax.run.lock import WorkdirLock
from iiblpo_jax.run.replay import examine, finding_table, load_batch, save_batch
from iiblpo_jax.run.resumable import check_resumable
from iiblpo_jax.run.rollout_log import log_columns
from iiblpo_jax.run.setup import set_up
from iiblpo_jax.step import specs
from iiblpo_jax.step.measures import sampled_metrics
from iiblpo_jax.step.programs import (
    AbstractStep,
    Frozen,
    Judged,
    Refill,
    abstract_of,
    make_programs,
    nobody_waits,
    refill_key,
    step_keys,
)
from iiblpo_jax.update.state import init_state


class Trainer:
    """Policy, reference, latents, data, verifiers, optimizer state and checkpoints of one run.

    Attributes:
      state: TrainState after the last finished step; `state.params['policy']` is the model being trained.
      model_config, tokenizer: of the policy.

    Raises:
      InputError: whatever the config, the files or the workdir get wrong, before anything is compiled; another process
        is at work in the workdir.
    """

    def __init__(self, config, workdir: Path | str, *, console: Console | None = None, devices: list | None = None):
        validate(config)
        self.config = config
        workdir = self._workdir = Path(workdir)
        console = self._console = console or Console()
        check_writable(workdir)
        self._lock = WorkdirLock(workdir)
        weakref.finalize(self, self._lock.release)  # where nobody calls `close`

        # --- model, tasks, data
        setup = set_up(config, workdir, devices=devices)  # not kept: the policy in it is the state's from here on
        self._mesh = setup.mesh
        self.model_config, self.tokenizer = setup.model, setup.tokenizer
        tasks = [task for task, _ in setup.tasks]
        self.source = setup.source(workdir)
        if self.source.dropped:
            console.print(f"{self.source.dropped} prompts longer than rollout.max_prompt are left out")
        evaluated = evaluation_tasks(config, tasks)
        asked = [*tasks, *(task for task in evaluated if task not in tasks)]
        self.scorer, self._environments = make_scorer(config, asked), make_environments(config, asked)
        self._evaluator = Evaluator(
            config,
            evaluated,
            setup.model,
            setup.tokenizer,
            self.scorer,
            mesh=setup.mesh,
            environments=self._environments,
        )

        # --- weights: the policy, a frozen copy as the reference, latents from the reference; or an adapter beside it
        base, cvae, params = setup.base(), None, setup.trained()
        reference = base or setup.reference()
        self._hinting = setup.hinting(self.source.shown_width)
        self._fingerprint = fingerprint(setup.model, setup.policy)
        self._checkpoints = Checkpoints(
            workdir, keep=config.checkpoint.keep, every=config.checkpoint.every, best=config.checkpoint.best
        )
        if newest := self._checkpoints.newest():
            check_resumable(newest, config, setup.model, self._fingerprint)
        if specs.uses_latents(config):
            whole = setup.reference() if isinstance(reference, Adapted) else reference
            cvae, params["psa"] = setup.latents(workdir / "latent", whole, console)
            del whole
        readers = {specs.REFERENCE: reference} | setup.teacher() | setup.reward_model(reference)
        self._frozen = Frozen(readers=readers, cvae=cvae)
        optimizer, self._schedule = specs.optimizer(config), specs.schedule(config)
        besides = {"novelty": specs.novelty(config, setup.model), "averages": specs.averages(config)}
        self.state = setup.placed(init_state(params, optimizer, **besides))

        # --- programs
        self._programs = make_programs(
            config,
            setup.model,
            self.state,
            optimizer,
            stop_ids=self.tokenizer.stop_ids,
            start_id=self.tokenizer.start_id,
            never_ids=self.tokenizer.textless_ids(setup.model.vocab_size),
            mesh=setup.mesh,
            base=base,
        )
        self._plans = {task.name: task.plan for task in tasks} if PLAN in self._programs.judged else None

        # --- where the run is: data position and counters after the last finished step
        self._position = self.source.get_state()
        self._counts = {"bad_steps": 0, "zero_std_steps": 0}
        self._empty_steps = 0  # steps in a row with nothing to learn from
        self._last: dict = {}  # metrics of the last step
        self._pending: PendingRollout | None = None
        self._score: float | None = None  # of the last evaluation, if it was of this state
        self._finished_at = self._checkpoint_seconds = 0.0

    # -- steps ------------------------------------------------------------------------------------------------------

    def step(self, step: int) -> tuple[dict, dict | None]:
        """Step number `step` (from 1), alone: samples, scores, updates, and waits for all of it.

        Returns:
          Metrics, and the columns of the rollout log where one is due (`log.rollouts`).

        Raises:
          InputError: train.max_bad_steps updates in a row were not finite, or the train.max_empty_steps before this one
            had nothing to learn from.
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
          InputError: train.max_bad_steps updates in a row were not finite, or train.max_empty_steps had nothing to
            learn from.
        """
        if first > last:
            return
        self._finished_at = time.monotonic()
        self._pending = self._start(first)
        try:
            for step in range(first, last + 1):
                self._check_learning(step - 1)
                update = self._finish(self._take())
                if step < last and not stop():
                    self._pending = self._start(step + 1)
                metrics, columns = self._outcome(update)
                del update  # with it go the rows of the update
                yield step, metrics, columns
                if self._pending is None:
                    return
        finally:  # a rollout that nobody will finish: its prompts are the next ones again
            self._pending = None
            self.source.set_state(self._position)

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
        programs, limit = measure_step(self._abstract()), device_limit()
        console.print(memory_table(programs, limit))
        check_fits(programs, limit)

    def replay(self, path: str, console: Console) -> None:
        """Looks at the rows of a bad step (replay.py) under the weights as they are; prints a table, changes nothing.

        Raises:
          InputError: the file cannot be read, or was saved with another config.
        """
        step, rows, key = load_batch(path, self._abstract().rows())
        base = self._frozen.base
        gradient = self._programs.gradient.over(base)
        teacher_VD = gradient.teacher_weights(self.state, self._programs.teacher_weights(self._frozen))
        finding = examine(gradient, self.state.params, rows, key, step=step, teacher_VD=teacher_VD, base=base)
        console.print(finding_table(finding, rows))

    def latent_metrics(self) -> dict:
        """What the latent stage measured (`latent/*`); empty without a latent."""
        return {} if self._frozen.cvae is None else json.loads((self._workdir / "latent" / METRICS).read_text())

    # -- resuming ---------------------------------------------------------------------------------------------------

    def restore(self) -> int | None:
        """Loads the newest checkpoint (params, optimizer, data position): the step it was taken after, or None."""
        self._checkpoints.remove_unfinished()
        abstract = abstract_of(self.state)
        if self._checkpoints.latest() is None:
            return None
        del self.state  # its memory is the restored one's
        found = self._checkpoints.restore_latest(abstract)
        if found is None:
            return None
        step, self.state, self._position, extra = found
        self.source.set_state(self._position)
        self._counts = extra["counts"]
        self._say_schedule(extra.get("decay_steps"))
        empty = extra.get("empty_steps", 0)  # a run that ended for them begins to count again
        self._empty_steps = empty if empty < self.config.train.max_empty_steps else 0
        return step

    def save(self, step: int, *, force: bool = False) -> None:
        """Starts a checkpoint after `step` if one is due; the next step's metrics say how long that kept it waiting.

        None is due after a bad step: weights that give no finite update are nothing to resume from.
        """
        if self._counts["bad_steps"] and not force:
            return
        began = time.monotonic()
        extra = {
            "counts": self._counts,
            "empty_steps": self._empty_steps,
            "decay_steps": self._schedule.decay_steps,
            "model": self._fingerprint,
            "latent": self.config.latent.kind,
            "lora": described(self.config),
            "base": absolute(self.config.model.path),
        }
        self._checkpoints.save(step, self.state, iterator=self._position, extra=extra, score=self._score, force=force)
        self._checkpoint_seconds = time.monotonic() - began

    def close(self) -> int | None:
        """Waits for the last checkpoint, ends the verifiers, gives the workdir back; the newest step on disk."""
        self.scorer.close()
        if self._environments:
            self._environments.close()
        saved = self._checkpoints.close()
        self._lock.release()
        return saved

    # -- pieces of the set-up -----------------------------------------------------------------------------------------

    def _abstract(self) -> AbstractStep:
        asked = next(self.source).asked
        self.source.set_state(self._position)
        return AbstractStep(self._programs, *abstract_of((self.state, self._frozen, asked)))

    # -- pieces of a step ---------------------------------------------------------------------------------------------

    def _start(self, step: int) -> PendingRollout:
        """Dispatches the rollout of a step, if it has one, and the reference forwards over it."""
        (batch, asked), began = next(self.source), time.monotonic()
        keys = step_keys(self.config.train.seed, step)
        talk, spec = None, self._programs.rollout_spec
        if self._environments:
            talk = Conversation(self._environments, self.tokenizer, batch.problems, spec)
        rest = self._programs.step(self.state, self._frozen, asked, keys, answer=talk or nobody_waits)
        return PendingRollout(
            step=step, batch=batch, rest=rest, sampled=next(rest), update_key=keys.update, began=began, talk=talk
        )

    def _take(self) -> PendingRollout:
        """The rollout under way, which is the caller's from here on: its Forest goes when the caller lets it go."""
        assert self._pending is not None
        done, self._pending = self._pending, None
        return done

    def _finish(self, done: PendingRollout) -> PendingUpdate:
        """Waits for a rollout, verifies it, and dispatches score and update; `state` is the new one."""
        done.began = max(done.began, self._finished_at)
        kept, verified = self._refilled(done)
        judged = Judged(kept.rewards, kept.columns)
        dispatched = time.monotonic()
        scored = done.rest.send(meshes.to_devices(judged, self._mesh, "batch"))
        # Before the update: the device works in the order of dispatch.
        known = scored_metrics(scored, done.sampled.stats)
        every = self.config.log.rollouts
        log = per_row = {}
        if every and done.step % every == 0:
            log, per_row = log_columns(
                kept,
                done.sampled,
                scored,
                scores=self._has_score,
                codes=self.config.latent.kind == "codes",
                logprobs=self.config.log.logprobs,
                entropies=self.config.log.entropies,
                left=without_replacement(self.config),
                root_codes=self._programs.root_codes,
            )
        updated = next(done.rest)
        self.state = updated.state
        self._position, self._score = self.source.get_state(), None
        self._checkpoints.prepare(done.step, self.state)
        return PendingUpdate(
            step=done.step,
            rows=scored.rows,
            key=done.update_key,
            counted=verified.metrics(by_task=bool(self.config.task.mix)),
            scored=known,
            updated=updated_metrics(updated.metrics, self.state.params),
            sampled=verified.sampled,
            log=log,
            per_row=per_row,
            rollout_s=verified.rollout_s,
            reward_s=verified.reward_s,
            dispatched=dispatched,
        )

    def _refilled(self, done: PendingRollout) -> tuple[Graded, Verified]:
        """Waits for the rollout and has others follow it while too few prompts have anything to teach, and while
        train.refills allows; the P prompts to learn from, which `done.sampled` is of, and what all were like."""
        verified = Verified(refills=self._programs.refills)
        kept = self._verify(done, verified)
        for refill in range(1, self._programs.refills + 1):
            if kept.informative_P.all():
                break
            batch, asked = next(self.source)
            done.refill(batch, Refill(asked, refill_key(self.config.train.seed, done.step, refill)))
            fresh = self._verify(done, verified)
            take_P = first_informative(kept, fresh)
            done.sampled = done.rest.send(meshes.to_devices(take_P, self._mesh))
            kept = kept.merged(fresh, take_P)
        if self._hinting is not None:
            kept, verified.hinted = self._hinting.explore(done, kept, self._grade)
        return kept, verified

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
        steps = self.config.update.minibatches * self.config.update.epochs
        self._empty_steps = self._empty_steps + 1 if metrics["update/empty"] == steps else 0
        self._last = metrics
        metrics |= {
            "update/bad_steps": self._counts["bad_steps"],
            "update/empty_steps": self._empty_steps,
            "reward/zero_std_steps": self._counts["zero_std_steps"],
            "time/checkpoint_s": self._checkpoint_seconds,
            "time/step_s": self._finished_at - began,
        }
        return metrics, update.columns()

    def _check_learning(self, step: int) -> None:
        """Raises InputError, with `step` saved, where it was the last of too many that had nothing to learn from."""
        if self._empty_steps >= self.config.train.max_empty_steps:
            self.save(step, force=True)
            self._checkpoints.wait()
            raise InputError(remarks.nothing_learned(step, self._empty_steps, self._last))

    def _say_schedule(self, before: int | None) -> None:
        """Says that a cosine goes on with another length than that of the run that was saved, if that is known."""
        if before and (line := remarks.schedule_moved(self._schedule, before, int(self.state.moved))):
            self._console.print(line, soft_wrap=True)

    def _published(self) -> Published:
        """The policy as decoding wants it."""
        return self._programs.publish(self._frozen.policy(self.state))

    @property
    def _has_score(self) -> bool:
        return self._programs.score_spec.bottleneck.estimator != "none"

    def _verify(self, done: PendingRollout, verified: Verified) -> Graded:
        """Waits for a rollout and grades its responses; notes in `verified` what they were like and took."""
        rollout_s, arrived = done.wait(), time.monotonic()
        forest, problems = done.sampled.forest, done.batch.problems
        texts = self.tokenizer.decode_batch(response_tokens(forest))
        asked = [problem for problem in problems for _ in range(forest.group_size)]
        said = texts if done.talk is None else self.tokenizer.decode_batch(response_tokens(forest, observations=False))
        grades = self._grade(asked, said)
        if done.talk is not None:
            grades = with_turns(grades, done.talk.heard(forest))
        finished = self._programs.score_spec.filter.finished
        found, told = graded(problems, texts, grades, forest, columns=self._programs.judged, finished=finished)
        measured = None
        if self._programs.refills or self._hinting is not None:
            measured = sampled_metrics(forest, meshes.to_devices(grades.rewards, self._mesh, "batch"))
        verified.add(told, found, measured, rollout_s=rollout_s, reward_s=time.monotonic() - arrived)
        return found

    def _grade(self, problems: Sequence[Problem], texts: list[str]) -> Grades:
        """The verdicts on responses."""
        return score_together(self.scorer, problems, texts, plans=self._plans)
