"""Plain GRPO on countdown.py: the baseline.

    python -m iiblpo_jax.train --config=configs/countdown_grpo.py --workdir=runs/countdown_grpo

What is off: as in arithmetic_grpo.py. A prompt has 7 independent samples, which generate about as many tokens as 4
roots with a branch each (5,510 and 5,370 a step).
Time: about 12 minutes of training on one idle CPU core; memory below 3 GiB.
Result: after 12 M generated tokens held-out pass@1 .43, pass@16 .57, pass@64 .61 (5 seeds, benchmarks/compare.py
--testbed=countdown).
"""

from pathlib import Path

from iiblpo_jax.defaults import RunConfig, load_file, plain_grpo


def get_config() -> RunConfig:
    return plain_grpo(load_file(Path(__file__).with_name("countdown.py")), samples=7)
