"""Qwen2.5-7B on one chip of TPU v6e: an int8 base and an adapter of rank 32, where training the weights needs many.

    python -m iiblpo_jax.train --config=configs/qwen2_5_7b_lora_v6e.py --workdir=runs/qwen2_5_7b_lora \
        --config.model.path=/data/Qwen2.5-7B --config.task.data_dir=/data/math
    python -m iiblpo_jax.plan --config=configs/qwen2_5_7b_lora_v6e.py --topology=v6e:1x1

Data and method as in qwen2_5_7b_math_dapo.py, but without a latent, and with a quarter of the prompts.
Time: not measured. Memory: not measured; by formula 8.1 GiB of base, .9 of adapter and moments, 7.9 of KV cache and,
while a rollout is under way, 7.1 of merged weights, of 32 GiB; trained whole, weights, moments and a
bfloat16 reference alone are 99 GiB. Results: not measured.
"""

from pathlib import Path

from iiblpo_jax.defaults import RunConfig, load_file


def get_config() -> RunConfig:
    c = load_file(Path(__file__).with_name("qwen2_5_7b_math_dapo.py"))
    c.lora.rank = 32
    c.lora.alpha = 64.0
    c.lora.base = "int8"
    c.latent.z = 0
    c.train.prompts_per_step = 8
    c.train.steps = 5017  # 2 * 20,069 / 8
    c.rollout.weights = "int8"  # a second copy, merged, while a rollout is under way
    c.rollout.slots = 24
    c.rollout.refill_at = 4
    c.rollout.unroll = False
    c.optim.lr = 1e-5  # ten times that of the weights; not tried
    c.update.microbatch = 1
    c.mesh.fsdp = 1
    return c
