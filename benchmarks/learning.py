"""Learning curves side by side: arms x seeds at equal generated tokens.

    python benchmarks/learning.py --out=benchmarks/results/learning.jsonl [--arms=iib_lpo,grpo] [--seeds=0,1,2]

An arm is a config file plus overrides. Every run trains until it has generated `--tokens` tokens (prefixes shared with
a parent are generated once and count once), then evaluates 512 held-out problems with 16 samples each. Appends one JSON
line a run and prints a Markdown table: mean +- standard deviation over seeds. Runs that the file already holds are
skipped, so an interrupted series goes on, and two processes may share the work by seeds.
"""

import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from absl import app, flags, logging
from rich.console import Console

from iiblpo_jax.cli import enable_compilation_cache, override
from iiblpo_jax.configuration import load_file, validate
from iiblpo_jax.trainer import Trainer

ROOT = Path(__file__).parents[1]
ARMS = {
    "iib_lpo": ("configs/arithmetic.py", []),
    "no_latent": ("configs/arithmetic.py", ["latent.z=0"]),
    "no_filter": ("configs/arithmetic.py", ["ib.filter=none"]),
    "random_filter": ("configs/arithmetic.py", ["ib.filter=random"]),
    "no_self_reward": ("configs/arithmetic.py", ["ib.reward_coef=0.0", "ib.entropy_coef=0.0"]),
    "branches_only": (
        "configs/arithmetic.py",
        ["latent.z=0", "ib.filter=none", "ib.estimator=none", "ib.reward_coef=0.0", "ib.entropy_coef=0.0"],
    ),
    "grpo": ("configs/arithmetic_grpo.py", []),
}
REPORTED = ("pass@1", "pass@16", "greedy", "distinct_4", "self_bleu", "tokens")

OUT = flags.DEFINE_string("out", "benchmarks/results/learning.jsonl", "JSON lines, one a run.")
CHOSEN = flags.DEFINE_list("arms", list(ARMS), "Arms to run.")
SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of sampling, data order and latents.")
TOKENS = flags.DEFINE_integer("tokens", 300_000, "Generated tokens a run.")
LATENTS = flags.DEFINE_string("latents", "", "Folder that keeps trained latents by seed; empty = a temporary one.")


def main(_):
    logging.set_verbosity(logging.WARNING)
    enable_compilation_cache()
    out = Path(OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        latents = Path(LATENTS.value or temporary)
        for seed in map(int, SEEDS.value):
            for arm in CHOSEN.value:
                if any(r["arm"] == arm and r["seed"] == seed and r["budget"] == TOKENS.value for r in results(out)):
                    continue
                line = run(arm, seed, latents / f"seed_{seed}")
                with out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
    print(table(results(out)))


def run(arm: str, seed: int, latents: Path) -> dict:
    """Trains one arm with one seed and evaluates it before and after."""
    file, changes = ARMS[arm]
    arguments = [f"--config.{change}" for change in [*changes, f"train.seed={seed}", f"data.seed={seed}"]]
    config = override(load_file(str(ROOT / file)), arguments)
    validate(config)
    with tempfile.TemporaryDirectory() as workdir:
        workdir = Path(workdir)
        if config.latent.z and latents.is_dir():
            shutil.copytree(latents, workdir / "latent")
        trainer = Trainer(config, workdir, console=Console(quiet=True))
        if config.latent.z and not latents.is_dir():
            shutil.copytree(workdir / "latent", latents)
        before, began = trainer.evaluate(), time.monotonic()
        tokens, rewards = 0, []
        for _, metrics, _ in trainer.steps(1, sys.maxsize):
            tokens += metrics["rollout/tokens"]
            rewards.append(metrics["reward/mean"])
            if tokens >= TOKENS.value:
                break
        seconds = time.monotonic() - began
        after = trainer.evaluate()
        trainer.close()
    print(f"{arm} seed {seed}: {len(rewards)} steps, {tokens} tokens, {seconds:.0f} s", flush=True)
    short = lambda m: {name.split("/")[-1]: m[f"eval/arithmetic/{name}"] for name in REPORTED}  # noqa: E731
    return {
        "arm": arm, "seed": seed, "budget": TOKENS.value, "tokens": tokens, "steps": len(rewards),
        "before": short(before), "after": short(after), "rewards": [round(r, 4) for r in rewards],
    }  # fmt: skip


def results(path: Path) -> list[dict]:
    """Runs done so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(runs: list[dict]) -> str:
    """Mean +- standard deviation over seeds, arms in the order of ARMS."""
    lines = ["| arm | seeds | steps | " + " | ".join(REPORTED) + " |", "|---|---|---|" + "---|" * len(REPORTED)]
    for arm in ARMS:
        mine = [r for r in runs if r["arm"] == arm]
        if mine:
            steps = statistics.mean(r["steps"] for r in mine)
            cells = [spread([r["after"][name] for r in mine]) for name in REPORTED]
            lines.append(f"| {arm} | {len(mine)} | {steps:.0f} | " + " | ".join(cells) + " |")
    if runs:
        first = [spread([r["before"][name] for r in runs]) for name in REPORTED]
        lines.append("| before training | | 0 | " + " | ".join(first) + " |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """`mean +- std` of some runs."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} +- {deviation:.3f}"


if __name__ == "__main__":
    app.run(main)
