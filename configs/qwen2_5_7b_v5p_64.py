"""The paper's main run on 64 chips of TPU v5p.

    python -m iiblpo_jax.train --config=configs/qwen2_5_7b_v5p_64.py --workdir=runs/qwen2_5_7b_v5p_64 \
        --config.model.path=/data/Qwen2.5-7B --config.task.data_dir=/data/math
    python -m iiblpo_jax.plan --config=configs/qwen2_5_7b_v5p_64.py --topology=v5p:4x4x4

Data and hyper-parameters as in qwen2_5_7b_math_dapo.py, 32 prompts a step included: a minibatch of 8 prompts keeps 8
shards busy, so the other factors of 64 split each forward (sequence 2) and each layer (tensor 4: the model has 4 kv
heads). A rollout splits its prompts over sequence as well.
Time: not measured. Memory: 8.7 GiB a chip as compiled, in publish (docs/scaling.md). Results: not measured.
"""

from pathlib import Path

from iiblpo_jax.defaults import RunConfig, load_file


def get_config() -> RunConfig:
    c = load_file(Path(__file__).with_name("qwen2_5_7b_math_dapo.py"))
    c.mesh.fsdp = 8
    c.mesh.sequence = 2
    c.mesh.tensor = 4
    c.rollout.slots = 256  # 16 on each of 16 engines: every trajectory of their 2 prompts
    c.rollout.unroll = False  # one layer is compiled instead of all
    return c
