"""Plain GRPO on the long sums of arithmetic_long.py, at the same number of generated tokens a step: the baseline.

    python -m iiblpo_jax.train --config=configs/arithmetic_long_grpo.py --workdir=runs/arithmetic_long_grpo

What is off: as in arithmetic_grpo.py. 5 samples a prompt, as there; how many tokens a step that makes here was not
counted
yet, so compare runs by generated tokens.
Time, memory and result: not measured yet; benchmarks/learning.py --testbed=arithmetic_long measures them.
"""

from pathlib import Path

from iiblpo_jax.config_files import load_file
from iiblpo_jax.defaults import RunConfig


def get_config() -> RunConfig:
    c = load_file(Path(__file__).with_name("arithmetic_long.py"))
    c.rollout.roots = 5
    c.branch.k = 0
    c.latent.z = 0
    c.ib.estimator = "none"
    c.ib.filter = "none"
    c.ib.reward_coef = 0.0
    c.ib.entropy_coef = 0.0
    return c
