"""Branches + weight on GSM8K with Qwen2.5-0.5B-Instruct, on one accelerator of 24 GB or more.

    python -m iiblpo_jax.train --config=configs/gsm8k_qwen2_5_0_5b.py --workdir=runs/gsm8k \
        --config.model.path=/data/Qwen2.5-0.5B-Instruct --config.task.data_dir=/data/gsm8k

model.path: the Hugging Face directory. task.data_dir: the Parquet or JSONL files, or a TFDS directory.
Time, memory, result: not measured.
"""

from iiblpo_jax.defaults import RunConfig, default_config


def get_config() -> RunConfig:
    c = default_config()

    c.model.path = "/data/Qwen2.5-0.5B-Instruct"
    c.model.dtype = "bfloat16"
    c.task.name = "gsm8k"
    c.task.data_dir = "/data/gsm8k"

    c.train.steps = 400
    c.train.prompts_per_step = 64
    c.data.verifiers = 8

    c.rollout.slots = 256
    c.rollout.refill_at = 64
    c.rollout.temperature = 1.0
    c.rollout.top_p = 1.0
    c.rollout.max_prompt = 512
    c.rollout.max_tokens = 512
    c.rollout.dtype = "bfloat16"

    c.optim.lr = 1e-6
    c.optim.warmup = 10
    c.update.minibatches = 4
    c.update.microbatch = 16

    c.checkpoint.every = 50
    c.eval.problems = 512
    c.eval.samples = 4
    c.eval.every = 100
    c.log.rollouts = 20
    return c
