"""TSPO on sums that are worked out with a calculator, `6+5+3=` -> `6+5=` `11;` `11+3=` `14;` `#14`, on two CPU cores.

    python -m iiblpo_jax.train --config=configs/calculator.py --workdir=runs/calculator

Model: the embedded checkpoint of `arithmetic`, which speaks the text untaught; what stands behind every `=` is now the
calculator's. Sums have more terms than it was warm-started on, so it has to learn to ask for every one of them.
Time, memory and result of the whole run: not measured. To be seen are `turns/answered`, `turns/near_miss` and
`turns/rescued` in metrics.jsonl, and in the rollout log branches that go on from any turn. With
--config.objective.name=grpo the turns of a response are all worth the same.
"""

from pathlib import Path

from iiblpo_jax.defaults import RunConfig, load_file


def get_config() -> RunConfig:
    c = load_file(Path(__file__).with_name("arithmetic_grpo.py"))

    c.task.name = "calculator"
    c.task.options = {"k_min": 4, "k_max": 7}

    c.turns.most = 8
    c.turns.observation = 4  # "99;" and one to spare
    c.objective.name = "tspo"

    c.train.steps = 200
    c.train.prompts_per_step = 16

    c.rollout.roots = 4
    c.rollout.max_prompt = 14  # "9+9+9+9+9+9+9="
    c.rollout.max_tokens = 64  # six times "54+9=63;" and the answer are 52

    c.branch.k = 1

    c.eval.problems = 256
    c.eval.samples = 4
    c.eval.k = (1, 4)
    return c
