"""Plain GRPO on the sums of arithmetic_longer.py: the baseline.

    python -m iiblpo_jax.train --config=configs/arithmetic_longer_grpo.py --workdir=runs/arithmetic_longer_grpo

What is off: as in arithmetic_grpo.py. A prompt has 6 independent samples.
Time and memory: not measured.
Result: not run to its end. What late branches (`branch.after`) change of a gradient is in docs/findings.md.
"""

from pathlib import Path

from iiblpo_jax.defaults import RunConfig, load_file, plain_grpo


def get_config() -> RunConfig:
    return plain_grpo(load_file(Path(__file__).with_name("arithmetic_longer.py")), samples=6)
