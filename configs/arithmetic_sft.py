"""The embedded arithmetic model taught the worked solutions of its own task: what supervised fine-tuning looks like.

    python -m iiblpo_jax.sft --config=configs/arithmetic_sft.py --workdir=runs/arithmetic_sft

Time and memory: not measured; 200 steps of 64 short responses. Result: not measured; `heldout/loss` in metrics.jsonl is
the negative log-likelihood of held-out solutions, nats a token, before the first step and after every 50.
`python -m iiblpo_jax.train --config=configs/arithmetic.py --config.model.path=runs/arithmetic_sft/model ...` goes on.
"""

from pathlib import Path

from iiblpo_jax.defaults import RunConfig, load_file


def get_config() -> RunConfig:
    c = load_file(Path(__file__).with_name("arithmetic_grpo.py"))
    c.train.steps, c.train.prompts_per_step = 200, 64
    c.optim.lr, c.optim.warmup, c.optim.schedule = 1e-4, 10, "cosine"
    c.eval.every = 50
    return c
