"""The paper's second run: IIB-LPO on MATH + DAPO-Math-17k with Qwen3-14B, 8 GPUs of 80 GB.

    python -m iiblpo_jax.train --config=configs/qwen3_14b_math_dapo.py --workdir=runs/qwen3_14b \
        --config.model.path=/data/Qwen3-14B --config.task.data_dir=/data/math

Data and hyper-parameters as in qwen2_5_7b_math_dapo.py; the weights are also split over heads, so that the copy that
decodes fits beside the optimiser state.
Time, memory: not measured. Published results (pass@1): AIME25 38.3, AIME24 46.6, MATH-500 93.5, OlympiadBench 68.0;
not reproduced here.
"""

from pathlib import Path

from iiblpo_jax.defaults import RunConfig, load_file


def get_config() -> RunConfig:
    c = load_file(Path(__file__).with_name("qwen2_5_7b_math_dapo.py"))
    c.model.path = "/data/Qwen3-14B"
    c.mesh.fsdp = 4
    c.mesh.tensor = 2
    return c
