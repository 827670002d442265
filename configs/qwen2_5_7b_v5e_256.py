"""The paper's main run on 256 chips of TPU v5e.

    python -m iiblpo_jax.train --config=configs/qwen2_5_7b_v5e_256.py --workdir=runs/qwen2_5_7b_v5e_256 \
        --config.model.path=/data/Qwen2.5-7B --config.task.data_dir=/data/math
    python -m iiblpo_jax.plan --config=configs/qwen2_5_7b_v5e_256.py --topology=v5e:16x16

Data and hyper-parameters as in qwen2_5_7b_math_dapo.py but for the batch: 128 prompts a step instead of 32, because a
minibatch, a quarter of them, has to divide among 32 shards; steps are a quarter as many, so the epochs stay two.
What this does to learning has not been tried.
Time: not measured. Memory: 8.0 GiB a chip as compiled, in publish (docs/scaling.md). Results: not measured.
"""

from pathlib import Path

from iiblpo_jax.defaults import RunConfig, load_file


def get_config() -> RunConfig:
    c = load_file(Path(__file__).with_name("qwen2_5_7b_math_dapo.py"))
    c.train.prompts_per_step = 128
    c.train.steps = 313  # 2 * 20,069 / 128
    c.mesh.fsdp = 32
    c.mesh.sequence = 2
    c.mesh.tensor = 4
    c.rollout.slots = 512  # 8 on each of 64 engines
    c.rollout.unroll = False  # one layer is compiled instead of all
    return c
