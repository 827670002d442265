"""Plain GRPO on smollm2_gym.py: the baseline.

    python -m iiblpo_jax.train --config=configs/smollm2_gym_grpo.py --workdir=runs/smollm2_gym_grpo

What is off: as in arithmetic_grpo.py. A prompt has 6 independent samples.
Time: 20 s a step of one CPU core, about 8 minutes with evaluation at the start and the end; memory about 6 GiB.
Result: after 7,500 generated tokens, 15 steps, held-out pass@1 / pass@16 from .06 / .47 to .08 / .16 on lcm and from
.32 / .97 to .52 / .78 on letter_counting, where answering 1 is worth .56 (one seed, benchmarks/compare.py
--testbed=smollm2_gym --arms=grpo --no_sweep --common= --seeds=0 --tokens=7000 --points=2 --problems=64 --samples=8
--final_problems=64 --final_samples=16).
"""

from pathlib import Path

from iiblpo_jax.defaults import RunConfig, load_file, plain_grpo


def get_config() -> RunConfig:
    return plain_grpo(load_file(Path(__file__).with_name("smollm2_gym.py")), samples=6)
