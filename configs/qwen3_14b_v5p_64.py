"""The paper's second run on 64 chips of TPU v5p.

    python -m iiblpo_jax.train --config=configs/qwen3_14b_v5p_64.py --workdir=runs/qwen3_14b_v5p_64 \
        --config.model.path=/data/Qwen3-14B --config.task.data_dir=/data/math
    python -m iiblpo_jax.plan --config=configs/qwen3_14b_v5p_64.py --topology=v5p:4x4x4

Data, hyper-parameters and mesh as in qwen2_5_7b_v5p_64.py, 32 prompts a step included. 8 shards of prompts; the other
factors of 64 split each forward (sequence 2) and each layer (tensor 4).
Time: not measured. Memory: 19.5 GiB a chip as compiled, in publish (docs/scaling.md). Results: not measured.
"""

from pathlib import Path

from iiblpo_jax.defaults import RunConfig, load_file


def get_config() -> RunConfig:
    c = load_file(Path(__file__).with_name("qwen2_5_7b_v5p_64.py"))
    c.model.path = "/data/Qwen3-14B"
    return c
