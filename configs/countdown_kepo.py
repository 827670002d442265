"""KEPO (arXiv 2602.00400) on countdown.py: an average of past policies teaches, hints begin with the gold solution.

    python -m iiblpo_jax.train --config=configs/countdown_kepo.py --workdir=runs/countdown_kepo

What is on besides countdown_grpo.py: the divergence from the teacher on right responses (distill.coef), and up to five
rollouts a step that begin with the first half of a gold solution (hint.attempts), since the vocabulary has no words for
a hint. Two of seven samples of a prompt without any reward give way to right ones.
Time: longer than countdown_grpo.py by as many rollouts as there are with hints (hint/rollouts); memory as there, and
the average of the weights.
Result: not measured over a whole run; hint/rescued of hint/prompts, update/divergence and pass@1 are what to look at.
"""

from pathlib import Path

from iiblpo_jax.defaults import RunConfig, kepo, load_file


def get_config() -> RunConfig:
    c = load_file(Path(__file__).with_name("countdown.py"))
    lr = c.optim.lr  # of models of this size
    c = kepo(c, samples=7)
    c.optim.lr = lr
    c.teacher.kind = "average"
    c.hint.source = "solution"
    c.hint.tokens = 12  # "1-9=-8;-8-9="
    return c
