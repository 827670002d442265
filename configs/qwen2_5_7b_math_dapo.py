"""The paper's main run: IIB-LPO on MATH + DAPO-Math-17k with Qwen2.5-7B, 8 GPUs of 80 GB.

    python -m iiblpo_jax.train --config=configs/qwen2_5_7b_math_dapo.py --workdir=runs/qwen2_5_7b \
        --config.model.path=/data/Qwen2.5-7B --config.task.data_dir=/data/math

model.path: the Hugging Face directory. task.data_dir: a folder that holds one folder a dataset, named as the tasks
(math, dapo_math, math500, aime24, aime25, olympiad), with their Parquet or JSONL files.
Hyper-parameters are the released ones: 32 prompts, M = 2, K = 3, four updates a rollout, two epochs of 20,069 prompts.
Time, memory: not measured. Published results (pass@1): AIME25 13.6, AIME24 18.6, MATH-500 81.5, OlympiadBench 58.0;
not reproduced here.
"""

from iiblpo_jax.defaults import RunConfig, default_config, paper


def get_config() -> RunConfig:
    c = paper(default_config())

    c.model.path = "/data/Qwen2.5-7B"
    c.model.dtype = "bfloat16"
    c.task.data_dir = "/data/math"
    c.task.mix = {"math": 6486.0, "dapo_math": 13583.0}  # by size: one epoch of both together
    c.data.verifiers = 16

    c.train.steps = 1254  # 2 * 20,069 / 32
    c.train.prompts_per_step = 32

    c.rollout.slots = 128
    c.rollout.refill_at = 16
    c.rollout.temperature = 0.9
    c.rollout.top_p = 0.9
    c.rollout.max_prompt = 2048
    c.rollout.max_tokens = 4096
    c.rollout.dtype = "bfloat16"

    c.latent.prompts = 2048

    c.optim.lr = 1e-6
    c.optim.weight_decay = 0.01
    c.update.minibatches = 4
    c.update.microbatch = 8

    c.mesh.data = 1
    c.mesh.fsdp = 8
    c.mesh.tensor = 1

    c.checkpoint.every = 50
    c.eval.tasks = ("math500", "aime24", "aime25", "olympiad")
    c.eval.problems = 1024  # all of each
    c.eval.samples = 16
    c.eval.k = (1, 4, 16)
    c.eval.every = 200
    c.log.rollouts = 20
    return c
