"""DPO on right and wrong answers of the embedded arithmetic model itself, drawn for every step.

    python -m iiblpo_jax.preferences --config=configs/arithmetic_dpo.py --workdir=runs/arithmetic_dpo

`--config.offline.source=start` draws them from the model that the run began with; `--config.offline.loss=flex_dpo` or
`sft_dpo` hold the drop of the rejected response back.
Time and memory: not measured; 100 steps of 32 prompts with 8 short rollouts each. Result: not measured; to be seen in
metrics.jsonl are `reward/mean` of the rollouts, `pairs/logp_chosen`, `pairs/logp_rejected`, `pairs/elsewhere`, and
`heldout/logp_chosen` of held-out solutions that nobody has trained on.
"""

from pathlib import Path

from iiblpo_jax.defaults import RunConfig, load_file


def get_config() -> RunConfig:
    c = load_file(Path(__file__).with_name("arithmetic_grpo.py"))
    c.train.steps, c.train.prompts_per_step = 100, 32
    c.rollout.roots, c.rollout.temperature, c.rollout.top_p = 8, 1.0, 1.0
    c.offline.source = "policy"
    c.optim.lr, c.optim.schedule = 2e-5, "constant"
    c.eval.every = 25
    return c
