"""The paper's second run on 64 chips of TPU v6e.

    python -m iiblpo_jax.train --config=configs/qwen3_14b_v6e_64.py --workdir=runs/qwen3_14b_v6e_64 \
        --config.model.path=/data/Qwen3-14B --config.task.data_dir=/data/math
    python -m iiblpo_jax.plan --config=configs/qwen3_14b_v6e_64.py --topology=v6e:8x8

Data and hyper-parameters as in qwen3_14b_math_dapo.py, 32 prompts a step included. 8 shards of prompts, and each layer
split over 8 chips, one kv head each.
Time: not measured. Memory: 11.2 GiB a chip as compiled, in rollout (docs/scaling.md).
Results: not measured.
"""

from pathlib import Path

from iiblpo_jax.defaults import RunConfig, load_file


def get_config() -> RunConfig:
    c = load_file(Path(__file__).with_name("qwen3_14b_math_dapo.py"))
    c.mesh.fsdp = 8
    c.mesh.tensor = 8
    c.rollout.slots = 256  # 32 on each of 8 engines: every trajectory of their 4 prompts
    c.rollout.unroll = False  # one layer is compiled instead of all
    return c
