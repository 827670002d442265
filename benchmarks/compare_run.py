"""One run: train, measure at even shares of the budget, and once more with many samples."""

import contextlib
import dataclasses
import hashlib
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
from compare_arms import ROOT, WORDS, Budget, Job, trajectories_of
from compare_clock import Clock
from compare_store import key_of, locked
from rich.console import Console

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.common.jsonl import write_atomic
from iiblpo_jax.config import files
from iiblpo_jax.defaults import RunConfig
from iiblpo_jax.devices.mesh import make_mesh
from iiblpo_jax.results.evaluation import Evaluator, evaluation_tasks
from iiblpo_jax.rollout.publication import publisher
from iiblpo_jax.run.trainer import Trainer
from iiblpo_jax.step import specs

QUIET = ("log.rollouts=0", "checkpoint.every=0", "checkpoint.best=False")
STEP_MEANS = {"entropy": "rollout/entropy", "reward": "reward/mean", "frac_mixed": "reward/frac_mixed"}
INFORMATION = "latent/information"  # of runs with codes, one more of them
# What the latent stage reads of a config, and its code.
LATENT_SECTIONS = ("model", "data", "task", "train", "rollout", "branch", "latent", "psa", "mesh")
LATENT_CODE = ROOT / "iiblpo_jax" / "latents"
NOT_LATENT = (
    "train.steps",
    "train.max_bad_steps",
    "train.max_empty_steps",
    "train.memory_report",
    "rollout.roots",
    "rollout.slots",
    "rollout.refill_at",
    "latent.condition",
    "data.verifiers",
    "data.verifier_timeout",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How every run of a file is measured.

    Attributes:
      points: evaluations after the first, at even shares of the budget; the last one is at its end.
      problems, samples: of those; held-out problems a task, samples a problem.
      final_problems, final_samples: of the evaluation that the table shows.
    """

    points: int
    problems: int
    samples: int
    final_problems: int
    final_samples: int

    def facts(self) -> dict:
        """As a line holds it."""
        return dataclasses.asdict(self)

    def changes(self) -> tuple[str, ...]:
        """Overrides of the evaluation on the way."""
        return (f"eval.problems={self.problems}", f"eval.samples={self.samples}", f"eval.k={_ks(self.samples)}")

    def final(self, config: RunConfig) -> RunConfig:
        """The config of the evaluation at the end."""
        final = config.copy_and_resolve_references()
        final["eval"].update({"problems": self.final_problems, "samples": self.final_samples})
        final["eval"].k = tuple(int(k) for k in _ks(self.final_samples).split(","))
        return final


def _ks(samples: int) -> str:
    return ",".join(str(k) for k in (1, 4, 16, 64) if k <= samples)


def run(job: Job, plan: Plan, *, latents: Path, say: Callable[[float, dict, dict], None]) -> dict:
    """Trains one arm with one seed and measures it.

    Args:
      job, plan: which run, and how it is measured. One of a sweep is measured before its first step and at its end.
      latents: folder of what runs have in common, shared by arms and processes: latents, the model before training.
      say: called with the share of the budget that is used up, what was spent, and the last point.

    Returns:
      The line of the run.
    """
    config = job.config((*QUIET, *plan.changes()))
    with (
        tempfile.TemporaryDirectory() as workdir,
        contextlib.closing(prepared(config, Path(workdir), latents)) as trainer,
    ):
        start, ends = _before(trainer, config, latents), {}
        if not job.sweep:
            ends["before"] = _before(trainer, plan.final(config), latents)
        course = _train(trainer, config, job.budget, 1 if job.sweep else plan.points, start, say)
        if not job.sweep:
            ends["final"] = _final(trainer, plan.final(config))
    jax.clear_caches()
    return key_of(job) | {"lr": config.optim.lr, "evaluation": plan.facts()} | course | ends


def _train(trainer: Trainer, config: RunConfig, budget: Budget, shares: int, start: dict, say: Callable) -> dict:
    """Steps until the budget is used up, or until the trainer finds no sense in going on: what a line holds of that.

    Args:
      shares: even shares of the budget at whose ends the policy is measured.
      start: held-out metrics before the first step, by task.
    """
    spent, stopped = dict.fromkeys((*WORDS, "steps"), 0), None
    points, since, clock = [_point(spent, [], start)], [], Clock()
    say(0.0, spent, points[-1])
    try:
        for _, metrics, _ in trainer.steps(1, sys.maxsize):
            since.append(metrics)
            spent = {
                "tokens": spent["tokens"] + metrics["rollout/tokens"],
                "trajectories": spent["trajectories"] + trajectories_of(config, metrics),
                "update_tokens": spent["update_tokens"] + metrics["update/tokens"],
                "seconds": clock.seconds(),
                "steps": spent["steps"] + 1,
            }
            share = budget.share(spent)
            if share * shares >= len(points):
                points.append(_point(spent, since, _by_task(clock.aside(trainer.evaluate))))
                since = []
            say(share, spent, points[-1])
            if share >= 1:
                break
    except InputError as error:  # updates that were bad or empty, too many in a row: the policy stays what it is
        stopped = str(error)
        points.append(_point(spent, since, _by_task(clock.aside(trainer.evaluate))))
    return spent | {"stopped": stopped, "points": points}


def prepared(config: RunConfig, workdir: Path, latents: Path) -> Trainer:
    """A trainer whose latents, if it has any, are those of `latents`; they are trained where they are missing."""
    console = Console(quiet=True)
    if not specs.uses_latents(config):
        return Trainer(config, workdir, console=console)
    kept = latents / latent_digest(config)
    with locked(latents / f"{kept.name}.lock", wait=True):
        if kept.is_dir():
            shutil.copytree(kept, workdir / "latent")
        trainer = Trainer(config, workdir, console=console)
        if not kept.is_dir():
            half = latents / f"{kept.name}.half"
            shutil.rmtree(half, ignore_errors=True)
            shutil.copytree(workdir / "latent", half)
            half.rename(kept)
    return trainer


def latent_digest(config: RunConfig) -> str:
    """Runs with the same digest train the same latents."""
    digest = hashlib.sha256(_read(config, LATENT_SECTIONS))
    for path in sorted(LATENT_CODE.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _read(config: RunConfig, sections: tuple[str, ...]) -> bytes:
    flat = files.flatten(config)
    read = {k: v for k, v in flat.items() if k.split(".")[0] in sections and k not in NOT_LATENT}
    return json.dumps(read, sort_keys=True, default=str).encode()


def _before(trainer: Trainer, config: RunConfig, folder: Path) -> dict:
    """`_final` of the model as it came, which all runs share: measured once and kept in `folder`."""
    digest = hashlib.sha256(_read(config, ("model", "task", "rollout", "eval"))).hexdigest()[:16]
    path = folder / f"before_{digest}.json"
    with locked(path.with_suffix(".lock"), wait=True):
        if not path.exists():
            write_atomic(path, json.dumps(_final(trainer, config)))
        return json.loads(path.read_text())


def _point(spent: dict, since: list[dict], measured: dict) -> dict:
    """One point of the curve; `since` are the metrics of the steps after the point before, `measured` is by task."""
    named = STEP_MEANS | ({"information": INFORMATION} if any(INFORMATION in m for m in since) else {})
    means = {name: statistics.fmean(m[key] for m in since) if since else None for name, key in named.items()}
    return spent | means | {"eval": measured}


def _final(trainer: Trainer, config: RunConfig) -> dict:
    """The held-out metrics of the policy as it is, measured as `config` says, by task."""
    mesh = make_mesh(config.mesh, prompts=config.train.prompts_per_step)
    evaluator = Evaluator(
        config, evaluation_tasks(config), trainer.model_config, trainer.tokenizer, trainer.scorer, mesh=mesh
    )
    policy = trainer.state.params["policy"]
    return _by_task(evaluator(publisher(specs.publication_spec(config, trainer.model_config), policy, mesh)(policy)))


def _by_task(metrics: dict) -> dict:
    found: dict[str, dict] = {}
    for key, value in metrics.items():
        if key.startswith("eval/"):
            task, _, name = key.removeprefix("eval/").rpartition("/")
            found.setdefault(task, {})[name] = value
    return found
