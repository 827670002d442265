"""Branches + weight on sums of 16 to 30 one-digit numbers, in responses of 110 to 273 tokens: a branch can be short.

    python -m iiblpo_jax.train --config=configs/arithmetic_longer.py --workdir=runs/arithmetic_longer

Model: the embedded checkpoint `arithmetic_longer` (3 layers, width 64), grown from that of `arithmetic_long` on worked
sums of that length: pass@1 .33, pass@16 .87.
Time and memory: not measured.
Result: not run to its end. What late branches (`branch.after`) change of a gradient is in docs/findings.md.
"""

from pathlib import Path

from iiblpo_jax.defaults import RunConfig, load_file


def get_config() -> RunConfig:
    c = load_file(Path(__file__).with_name("arithmetic_long.py"))
    c.model.path = "package:iiblpo_jax/data/assets/arithmetic_longer"
    c.task.options = {"k_min": 16, "k_max": 30}
    c.train.prompts_per_step = 16
    c.rollout.max_prompt = 60  # thirty digits, twenty-nine plus signs, "="
    c.rollout.max_tokens = 288  # thirty nines and the stop token are 273
    return c
