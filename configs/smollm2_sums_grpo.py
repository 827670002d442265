"""Plain GRPO on smollm2_sums.py: the baseline.

    python -m iiblpo_jax.train --config=configs/smollm2_sums_grpo.py --workdir=runs/smollm2_sums_grpo

What is off: as in arithmetic_grpo.py.
"""

from pathlib import Path

from iiblpo_jax.config_files import load_file
from iiblpo_jax.defaults import RunConfig, plain_grpo


def get_config() -> RunConfig:
    return plain_grpo(load_file(Path(__file__).with_name("smollm2_sums.py")), samples=11)
