"""Supervised fine-tuning: the mean negative log-likelihood of a token of the responses.

    L = -sum_i log pi(y_i | x_i) / sum_i |y_i|

Prompts are read and not learnt. Every token weighs the same, so long responses weigh more.
"""

from functools import partial

from iiblpo_jax.offline.losses.interface import CHOSEN, Loss, likelihood


def sft() -> Loss:
    """The module's loss, linear in the log-probs."""
    return Loss(name="sft", function=partial(likelihood, role=CHOSEN), linear=True)
