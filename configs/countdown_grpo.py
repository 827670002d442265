"""Plain GRPO on countdown.py, at the same number of generated tokens a step: the baseline.

    python -m iiblpo_jax.train --config=configs/countdown_grpo.py --workdir=runs/countdown_grpo

What is off: as in arithmetic_grpo.py. 5 samples a prompt, as there; how many tokens a step that makes here was not
counted
yet, so compare runs by generated tokens.
Time, memory and result: not measured yet; benchmarks/learning.py --testbed=countdown measures them.
"""

from pathlib import Path

from iiblpo_jax.config_files import load_file
from iiblpo_jax.defaults import RunConfig


def get_config() -> RunConfig:
    c = load_file(Path(__file__).with_name("countdown.py"))
    c.rollout.roots = 5
    c.branch.k = 0
    c.latent.z = 0
    c.ib.estimator = "none"
    c.ib.filter = "none"
    c.ib.reward_coef = 0.0
    c.ib.entropy_coef = 0.0
    return c
