"""Gradient ascent on the loss of what is to be forgotten: the baseline of TOFU (Maini et al., arXiv 2401.06121).

    L = sum_i log pi(y-_i | x_i) / sum_i |y-_i|

It has no lower bound. With a set to be kept (offline.retain) it is TOFU's gradient difference.
"""

from iiblpo_jax.offline.losses.interface import REJECTED, Loss, likelihood


def gradient_ascent() -> Loss:
    """The module's loss."""
    return Loss(name="gradient_ascent", function=lambda read: -likelihood(read, REJECTED))
