"""Plain GRPO on smollm2_sums.py: the baseline.

    python -m iiblpo_jax.train --config=configs/smollm2_sums_grpo.py --workdir=runs/smollm2_sums_grpo

What is off: as in arithmetic_grpo.py. A prompt has 11 independent samples, which generate about as many tokens as 7
roots with a branch each (790 and 800 a step).
Time: about 10 minutes on one CPU core or 2, compilation included; memory about 7 GiB.
Result: after 16,000 generated tokens, 20 steps, held-out pass@1 .49, .01 and .59 (3 seeds, benchmarks/compare.py
--testbed=smollm2_sums).
"""

from pathlib import Path

from iiblpo_jax.defaults import RunConfig, load_file, plain_grpo


def get_config() -> RunConfig:
    return plain_grpo(load_file(Path(__file__).with_name("smollm2_sums.py")), samples=11)
