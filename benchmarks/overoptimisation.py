"""What becomes of the true reward while a policy learns from a model of it: sums, and a judge of few pairs.

    python benchmarks/overoptimisation.py --out=benchmarks/results/overoptimisation.jsonl --svg=docs/proxy.svg

For every seed a reward model (python -m iiblpo_jax.reward_model) is made of few right and wrong responses, and every
arm learns from it alone; the verifier only measures. To be seen is the step from which on the model's reward rises and
the true one falls (Gao et al., arXiv 2210.10760), and whether MOP rises with it.

    proxy   the model's reward as it is
    ibl     less ibl_coef times the Mahalanobis distance of the latent (arXiv 2510.13694)
    kl      as it is, with a KL to the initial policy, the usual control
    *_more  the same with a larger coefficient

A line of JSON a run: arm, seed, what the reward model was worth on pairs of other prompts, and true, proxy, distance
and mop of every step. What is there already is not run again.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console

from iiblpo_jax import cli
from iiblpo_jax.common.jsonl import read_jsonl
from iiblpo_jax.defaults import RunConfig, load_file
from iiblpo_jax.run.reward_model import ensure_reward_model
from iiblpo_jax.run.setup import set_up
from iiblpo_jax.run.trainer import Trainer

ROOT = Path(__file__).parents[1]
QUIET = Console(quiet=True)
CURVES = {"true": "true reward", "proxy": "the model's reward", "distance": "distance", "mop": "MOP"}
ARMS = {
    "proxy": {},
    "ibl": {"reward.ibl_coef": 0.3},
    "ibl_more": {"reward.ibl_coef": 2.0},
    "kl": {"update.kl_coef": 0.1},
    "kl_more": {"update.kl_coef": 1.0},
}


def config_of(seed: int, steps: int, prompts: int, epochs: int) -> RunConfig:
    """Plain GRPO on sums of two to four terms, 16 prompts of 6 samples a step, and the stage of its judge.

    Args:
      seed: of everything.
      steps: of training.
      prompts: that the judge has seen responses to.
      epochs: passes over its pairs.
    """
    c = load_file(ROOT / "configs" / "arithmetic_grpo.py")
    c.train.update({"seed": seed, "steps": steps, "prompts_per_step": 16})
    c.data.seed = seed
    c.optim.update({"lr": 1e-3, "warmup": 5})
    c.log.rollouts = c.checkpoint.every = 0
    c.checkpoint.best = False
    c.reward_model.update({"prompts": prompts, "samples": 8, "z": 8, "batch": 16, "epochs": epochs, "lr": 1e-3})
    c.reward_model.beta = 0.01
    return c


def run(config: RunConfig, workdir: Path) -> dict[str, list[float]]:
    """The curves of a run that learns from config.reward.model."""
    trainer = Trainer(config, workdir, console=QUIET)
    rows = [metrics for _, metrics, _ in trainer.steps(1, config.train.steps)]
    trainer.close()
    return {name: [round(row[f"reward/{name}"], 5) for row in rows] for name in CURVES}


def runs(arms: Sequence[str], seed: int, options: dict, done: Sequence[dict]):
    """The line of every arm that is not done yet."""
    missing = [arm for arm in arms if not any(line["arm"] == arm and line["seed"] == seed for line in done)]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as folder:
        judge = Path(folder) / "reward_model"
        metrics = ensure_reward_model(set_up(config_of(seed, **options)), judge, console=QUIET)
        for arm in missing:
            config = config_of(seed, **options)
            config.reward.model = str(judge)
            for key, value in ARMS[arm].items():
                section, name = key.split(".")
                config[section][name] = value
            curves = run(config, Path(folder) / arm)
            yield {"arm": arm, "seed": seed, **options, "changes": ARMS[arm], "reward_model": metrics, **curves}


def plot(lines: Sequence[dict], path: Path) -> None:
    """A panel a curve: means over the seeds, smoothed over ten steps, against the steps."""
    figure = Figure(figsize=(3.4 * len(CURVES), 2.8), layout="constrained")
    for panel, (name, title) in zip(figure.subplots(1, len(CURVES)), CURVES.items(), strict=True):
        for arm in dict.fromkeys(line["arm"] for line in lines):
            mean = np.mean([line[name] for line in lines if line["arm"] == arm], axis=0)
            window = min(10, len(mean))
            panel.plot(
                np.arange(window, len(mean) + 1), np.convolve(mean, np.ones(window) / window, "valid"), label=arm
            )
        panel.set_title(title, fontsize=9)
        panel.set_xlabel("step", fontsize=8)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.25)
    panel.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Runs what is missing, prints first and last of every curve, draws."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--out", type=Path, required=True, help="lines of JSON")
    flags.add_argument("--svg", type=Path, help="the figure")
    flags.add_argument("--arms", default=",".join(ARMS))
    flags.add_argument("--seeds", default="0")
    flags.add_argument("--steps", type=int, default=300)
    flags.add_argument("--prompts", type=int, default=64, help="that the reward model has seen responses to")
    flags.add_argument("--epochs", type=int, default=30, help="passes of the reward model over its pairs")
    given = flags.parse_args()
    cli.enable_compilation_cache()
    options = {"steps": given.steps, "prompts": given.prompts, "epochs": given.epochs}
    lines = list(read_jsonl(given.out)) if given.out.exists() else []
    for seed in map(int, given.seeds.split(",")):
        for line in runs(given.arms.split(","), seed, options, lines):
            lines.append(line)
            with given.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
            tenth = max(1, given.steps // 10)
            ends = {
                name: [float(np.mean(line[name][part])) for part in (slice(tenth), slice(-tenth, None))]
                for name in CURVES
            }
            told = ", ".join(f"{name} {first:.3f} -> {last:.3f}" for name, (first, last) in ends.items())
            print(f"{line['arm']} (seed {seed}): {told}", flush=True)
    if given.svg:
        plot([line for line in lines if line["steps"] == given.steps], given.svg)


if __name__ == "__main__":
    main()
