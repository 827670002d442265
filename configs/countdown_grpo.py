"""Plain GRPO on countdown.py: the baseline.

    python -m iiblpo_jax.train --config=configs/countdown_grpo.py --workdir=runs/countdown_grpo

What is off, and the 5 samples a prompt: as in arithmetic_grpo.py. How many tokens a step they make here was not
counted, so compare runs by generated tokens.
Time, memory and result: not measured yet; benchmarks/learning.py --testbed=countdown measures them.
"""

from pathlib import Path

from iiblpo_jax.config_files import load_file
from iiblpo_jax.defaults import RunConfig, plain_grpo


def get_config() -> RunConfig:
    return plain_grpo(load_file(Path(__file__).with_name("countdown.py")), samples=7)
