"""Plain GRPO on the long sums of arithmetic_longer.py: the baseline.

    python -m iiblpo_jax.train --config=configs/arithmetic_longer_grpo.py --workdir=runs/arithmetic_longer_grpo

What is off: as in arithmetic_grpo.py. A prompt has 6 independent samples, which generate about as many tokens as 4
roots with a branch each (15,600 and 14,800 a step).
Time: about 4 minutes of training on one idle CPU core; memory below 3 GiB.
Result: after 3 M generated tokens, 193 steps, held-out pass@1 .88, pass@16 1.00 (5 seeds, benchmarks/compare.py
--testbed=arithmetic_longer).
"""

from pathlib import Path

from iiblpo_jax.defaults import RunConfig, load_file, plain_grpo


def get_config() -> RunConfig:
    return plain_grpo(load_file(Path(__file__).with_name("arithmetic_longer.py")), samples=6)
