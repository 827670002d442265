"""countdown.py with an adapter of rank 8 in place of the weights: what LoRA costs where full training is at hand.

    python -m iiblpo_jax.train --config=configs/countdown_lora.py --workdir=runs/countdown_lora

Model: the embedded checkpoint `countdown`, frozen; the adapter has 29 thousand weights beside its 149 thousand.
Time: not measured on an idle machine; memory about 1 GiB.
Result: of the whole run none. Both configs over 150 steps, one seed, began at held-out pass@1 .146 and came to .165, of
countdown.py .168, and the last 50 rewards to .173 and .170: too short to tell them apart. Rollout and update agreed to
6.1e-5 at every token of every step (benchmarks/results/learning_lora.jsonl).
"""

from pathlib import Path

from iiblpo_jax.defaults import RunConfig, load_file


def get_config() -> RunConfig:
    c = load_file(Path(__file__).with_name("countdown.py"))
    c.lora.rank = 8
    c.lora.alpha = 16.0
    c.optim.lr = 10 * c.optim.lr  # as is usual of adapters; other rates were not tried
    return c
