"""The paper's evaluation: AIME 2024 and 2025, MATH-500 and OlympiadBench, from local files, of a run or of a model.

    python -m iiblpo_jax.evaluate --config=configs/math_benchmarks.py --workdir=runs/qwen2_5_7b \
        --config.model.path=/data/Qwen2.5-7B --config.task.data_dir=/data/math [--second_grader=math_verify]

Takes the newest checkpoint of --workdir=runs/NAME that grew from model.path, or the model where there is none.
task.data_dir: a folder that holds one folder a benchmark, named as the tasks, with its Parquet or JSONL files.
Temperature .6, top-p .95, 8192 tokens; 256 samples a problem of AIME, for avg@32 and pass@256, and 16 elsewhere.
A kill costs the problems of one call, at most 1024 samples; the same line goes on. Time, memory, result: not measured.
"""

from iiblpo_jax.defaults import RunConfig, default_config


def get_config() -> RunConfig:
    c = default_config()

    c.model.path = "/data/Qwen2.5-7B"
    c.task.data_dir = "/data/math"
    c.data.verifiers = 16

    c.rollout.slots = 256
    c.rollout.refill_at = 16
    c.rollout.max_prompt = 2048
    c.rollout.max_tokens = 8192
    c.rollout.dtype = "bfloat16"

    c.eval.tasks = ("aime24", "aime25", "math500", "olympiad")
    c.eval.problems = 1024  # all of each
    c.eval.samples = 16
    c.eval.task_samples = {"aime24": 256, "aime25": 256}
    c.eval.temperature = 0.6
    c.eval.top_p = 0.95
    c.eval.k = (1, 4, 16, 64, 256)
    c.eval.avg = (32,)
    c.eval.greedy = False
    return c
