"""Branches without replacement + weight on countdown, `3,9,4>8:` -> `9-4=5;5+3=8;#8`: order and signs are free.

    python -m iiblpo_jax.train --config=configs/countdown.py --workdir=runs/countdown

Model: the embedded checkpoint `countdown` (3 layers, width 64), warm-started on chains of which most miss the target:
pass@1 .09, pass@16 .70.
Time: about 14 minutes of training on one idle CPU core; memory below 3 GiB.
Result: after 12 M generated tokens, these 2,200 steps, held-out pass@1 .69, pass@16 .90, pass@64 .95 (5 seeds,
benchmarks/compare.py --testbed=countdown); with branch.replace=True .63, .84 and .89.
"""

from pathlib import Path

from iiblpo_jax.defaults import RunConfig, load_file


def get_config() -> RunConfig:
    c = load_file(Path(__file__).with_name("arithmetic.py"))
    c.model.path = "package:iiblpo_jax/data/assets/countdown"
    c.task.name = "countdown"
    c.task.options = {"k_min": 3, "k_max": 5}
    c.train.steps = 2200
    c.latent.z, c.ib.estimator = 0, "none"  # the default, which the shipped run is not: docs/findings.md
    c.branch.replace = False  # docs/findings.md
    c.rollout.max_prompt = 13  # "9,9,9,9,9>35:"
    c.rollout.max_tokens = 48  # "1-9=-8;-8-9=-17;-17-9=-26;-26-9=-35;#-35" and the stop token are 41
    return c
