"""Does the latent matter? Settings of the latent stage side by side, on the model's own continuations.

    python benchmarks/latents.py [--tasks=countdown] [--settings=codes_follow,codes_mixed]

A setting is a task's config plus overrides. Each is trained by the latent stage itself and measured on held-out
prompts: the stage's table (NLL of the rest with z from the posterior, from the prior, and summed over the prior,
against plain; KL over 8 tokens), then `--problems` trees of `--k` branches: how many different plans (`Task.plan`) the
branches of a tree are, and how many are right, against plain resampling from the same prefixes. `ceiling` is what
systematic sampling over the plans themselves would give, from PLANS resamples a prefix: no latent that leaves the
policy's distribution alone can have more. Appends one JSON line a setting; settings that are there are skipped.
"""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))

from compare_arms import CODES

from iiblpo_jax.cli import enable_compilation_cache
from iiblpo_jax.common.padded import pad_rows
from iiblpo_jax.config.files import load_file
from iiblpo_jax.config.overrides import override
from iiblpo_jax.config.validation import validate
from iiblpo_jax.data.pipeline import PromptPipeline
from iiblpo_jax.data.registry import make_tasks
from iiblpo_jax.latents.continuations import training_questions
from iiblpo_jax.latents.stage import train_latents
from iiblpo_jax.latents.storage import load_latents
from iiblpo_jax.model.decoder import params_of
from iiblpo_jax.model.files.loading import load_model
from iiblpo_jax.rewards.scorer import Scorer
from iiblpo_jax.rollout.engine import rollout
from iiblpo_jax.rollout.forest import response_tokens
from iiblpo_jax.rollout.publication import publish
from iiblpo_jax.step import specs

ROOT = Path(__file__).parents[1]
PLANS = 64  # resamples of a prefix from which the probabilities of plans are estimated
COMMON = ("latent.prompts=3072", "latent.samples=4", "train.prompts_per_step=64", "rollout.slots=128")
SMALL = ("latent.prompts=64", "latent.steps=20", "latent.psa_steps=5")
GAUSSIAN = ("latent.kind=gaussian", "latent.z=16")
HALF, MIXED, FLAT = "latent.prior_weight=0.5", "latent.prior_weight=0.8", "latent.prior_power=0.0"
SETTINGS = {
    "gaussian": GAUSSIAN,
    "gaussian_mixed": (
        *GAUSSIAN,
        "latent.psa_lr=1e-2",
        "latent.psa_steps=600",
        "psa.half_life=4.0",
        "latent.prior_weight=0.7",
    ),
    "codes_follow": CODES,
    "codes_half": (*CODES, HALF),
    "codes_mixed": (*CODES, MIXED),
    "codes_half_flat": (*CODES, HALF, FLAT),
    "codes_follow_flat": (*CODES, "latent.prior_power=0.3"),
    "codes_mixed_flat": (*CODES, MIXED, FLAT),
}

OUT = flags.DEFINE_string("out", "benchmarks/results/latents.jsonl", "JSON lines, one a setting.")
TASKS = flags.DEFINE_list("tasks", ["arithmetic", "countdown"], "Config files in configs/.")
CHOSEN = flags.DEFINE_list("settings", list(SETTINGS), "Settings to run.")
PROBLEMS = flags.DEFINE_integer("problems", 256, "Held-out problems, one tree each.")
BRANCHES = flags.DEFINE_list("k", ["3", "8"], "Branches a tree.")
QUICK = flags.DEFINE_bool("quick", False, "Toy sizes: numbers without meaning.")


def main(_):
    logging.set_verbosity(logging.WARNING)
    enable_compilation_cache()
    out = Path(OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    for name in TASKS.value:
        todo = [s for s in CHOSEN.value if not any((r["task"], r["setting"]) == (name, s) for r in lines(out))]
        plain = Task(name).plain() if todo else None
        for setting in todo:
            line = Task(name, SETTINGS[setting]).measure(plain) | {"setting": setting}
            with out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            print(table(lines(out)[-1:]), flush=True)
    print(table(lines(out)))


class Task:
    """One task's model, problems and config."""

    def __init__(self, name: str, changes: tuple[str, ...] = ()):
        self.name, self.config = name, load_file(ROOT / "configs" / f"{name}.py")
        changes = (*COMMON, *changes, *(SMALL if QUICK.value else ()))
        override(self.config, [f"--config.{change}" for change in changes])
        validate(self.config)
        model, self.tokenizer = load_model(self.config.model.path)
        self.model, self.params = model.config, params_of(model)
        self.weighted = make_tasks(self.config.task, seed=self.config.data.seed)
        self.task = self.weighted[0][0]

    def measure(self, plain: dict) -> dict:
        """Trains the latents of the config and compares them with plain resampling."""
        with tempfile.TemporaryDirectory() as directory:
            metrics = train_latents(
                self.config,
                Path(directory) / "latent",
                self.model,
                self.params,
                self._questions(),
                stop_ids=self.tokenizer.stop_ids,
                never_ids=self.tokenizer.textless_ids(self.model.vocab_size),
                console=Console(quiet=True),
            )
            cvae, psa = load_latents(Path(directory) / "latent", self.model, self.params)
        latents = {"psa": params_of(psa), "cvae": params_of(cvae)}
        nll = {name: metrics[f"latent/nll_{name}"] for name in ("plain", "posterior", "prior", "prior_mixture")}
        result = {
            "task": self.name,
            "kl_next8": metrics["latent/kl_next8"],
            "kl_next": metrics["latent/kl_between"],
            "posterior_gain": 1 - nll["posterior"] / nll["plain"],
            "prior_loss": nll["prior"] / nll["plain"] - 1,
            "mixture_loss": nll["prior_mixture"] / nll["plain"] - 1,
            "nll": nll,
        }
        for siblings in ("independent", "stratified"):
            for k in map(int, BRANCHES.value):
                plans, right = self._trees(k, latents, stratified=siblings == "stratified")
                result[f"{siblings}_{k}"] = {
                    "plan_ratio": distinct(plans) / plain[k]["plans"],
                    "plans": distinct(plans),
                    "accuracy_change": float(right.mean()) - plain[k]["accuracy"],
                    "accuracy": float(right.mean()),
                    "plain": plain[k],
                }
        return result

    def plain(self) -> dict:
        """Distinct plans, accuracy and ceiling of plain resampling by K."""
        found, share_PU = {}, [np.unique(row, return_counts=True)[1] / PLANS for row in self._trees(PLANS)[0]]
        for k in map(int, BRANCHES.value):
            plans, right = self._trees(k)
            iid = np.mean([(1 - (1 - p) ** k).sum() for p in share_PU])
            best = np.mean([np.minimum(1, k * p).sum() for p in share_PU])
            found[k] = {"plans": distinct(plans), "accuracy": float(right.mean()), "ceiling": float(best / iid)}
        return found

    def _questions(self):
        pipeline = PromptPipeline(
            self.weighted,
            self.tokenizer,
            prompts_per_step=32,
            max_prompt=self.config.rollout.max_prompt,
            max_answer=1,
            seed=self.config.data.seed,
        )
        return training_questions(pipeline, self.tokenizer, self.config.latent.prompts)

    def _trees(self, k: int, latents: dict | None = None, *, stratified: bool = False):
        """Plans [P][K] and rewards [P,K] of the branches of one tree a held-out problem."""
        problems = self.task.heldout[: 8 if QUICK.value else PROBLEMS.value]
        never_ids = self.tokenizer.textless_ids(self.model.vocab_size)
        spec = specs.rollout_spec(self.config, self.model, self.tokenizer.stop_ids, never_ids=never_ids)
        branching = dataclasses.replace(spec.branching, k=k)
        spec = dataclasses.replace(spec, roots=1, branching=branching, stratified=stratified, refill_at=16)
        prompts = [self.tokenizer.encode(problem.question) for problem in problems]
        prompt_PS, prompt_len_P = map(jnp.asarray, pad_rows(prompts))
        published = publish(self.params, spec=specs.publication_spec(self.config, self.model))
        forest, _ = rollout(published, prompt_PS, prompt_len_P, jax.random.key(3), spec=spec, latents=latents)
        texts = self.tokenizer.decode_batch(response_tokens(forest))
        with Scorer([self.task]) as scorer:
            rewards = scorer.score([p for p in problems for _ in range(1 + k)], texts).rewards
        plans = [[self.task.plan(text) or "" for text in texts[i + 1 : i + 1 + k]] for i in range(0, len(texts), 1 + k)]
        return plans, np.asarray(rewards).reshape(-1, 1 + k)[:, 1:]


def distinct(plans: list[list[str]]) -> float:
    """Mean number of different plans a tree; malformed responses are one plan together."""
    return float(np.mean([len(set(row)) for row in plans]))


def lines(path: Path) -> list[dict]:
    """Settings measured so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(results: list[dict]) -> str:
    """One row a setting."""
    ks = [int(k) for k in BRANCHES.value]
    head = ["task", "setting", "KL 8 tokens", "posterior", "prior", "summed"]
    head += [f"plans x{k} {s}" for s in ("ind.", "strat.") for k in ks] + [f"ceiling x{k}" for k in ks]
    rows = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for r in results:
        cells = [r["task"], r["setting"], f"{r['kl_next8']:.3f}"]
        cells += [f"{-r['posterior_gain']:+.1%}", f"{r['prior_loss']:+.1%}", f"{r['mixture_loss']:+.1%}"]
        for siblings in ("independent", "stratified"):
            arms = [r[f"{siblings}_{k}"] for k in ks]
            cells += [f"{arm['plan_ratio']:.2f} ({100 * arm['accuracy_change']:+.1f} pt)" for arm in arms]
        cells += [f"{r[f'stratified_{k}']['plain']['ceiling']:.2f}" for k in ks]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    app.run(main)
