"""TSPO on sums that are worked out with a calculator, `6+5+3=` -> `6+5=` `11;` `11+3=` `14;` `#14`, on two CPU cores.

    python -m iiblpo_jax.train --config=configs/calculator.py --workdir=runs/calculator

Model: the embedded checkpoint of `arithmetic`, which speaks the text untaught; what stands behind every `=` is now the
calculator's. Sums have more terms than it was warm-started on, so it has to learn to ask for every one of them.
Time, memory and result of the whole run: not measured. To be seen are `turns/answered`, `turns/near_miss` and
`turns/rescued` in metrics.jsonl, and in the rollout log branches that go on from any turn. With
--config.objective.name=grpo the turns of a response are all worth the same.
"""

from iiblpo_jax.defaults import RunConfig, default_config


def get_config() -> RunConfig:
    c = default_config()

    c.task.name = "calculator"
    c.task.options = {"k_min": 4, "k_max": 7}

    c.turns.most = 8
    c.turns.observation = 4  # "99;" and one to spare
    c.objective.name = "tspo"

    c.train.steps = 200
    c.train.prompts_per_step = 16

    c.rollout.roots = 4
    c.rollout.slots = 32
    c.rollout.refill_at = 2
    c.rollout.temperature = 1.0
    c.rollout.top_p = 1.0
    c.rollout.max_prompt = 14  # "9+9+9+9+9+9+9="
    c.rollout.max_tokens = 64  # six times "54+9=63;" and the answer are 52

    c.branch.k = 1
    c.ib.filter = "none"
    c.advantage.weight = "none"

    c.optim.lr = 3e-4
    c.optim.warmup = 10
    c.optim.b2 = 0.95
    c.optim.clip_norm = 0.5
    c.optim.weight_decay = 0.0
    c.update.minibatches = 1
    c.update.microbatch = 32

    c.checkpoint.every = 100
    c.eval.problems = 256
    c.eval.samples = 4
    c.eval.temperature = 1.0
    c.eval.top_p = 1.0
    c.eval.k = (1, 4)
    c.log.rollouts = 10
    return c
