"""SPINE (Wu et al., arXiv 2511.17938): only forking tokens learn, and their entropy is held in a band.

On the ceil(fraction N) tokens of the highest entropy among the N of a minibatch, as in `forking_tokens`, the loss is
DAPO's plus

    band_coef * (max(0, low - H_t) + max(0, H_t - high))

and the mean is over these tokens. H carries the gradient in the band term, not in the choice. From the abstract: that
updates go to high-entropy tokens alone, and that a band on their entropy keeps exploration up where it is too low and
noise down where it is too high. The formula, and band_coef, low and high, are ours; fraction is that of 80/20
(arXiv 2506.01939). SPINE was made for majority votes at test time; here rewards come from the verifier.
"""

import dataclasses
from functools import partial

import jax

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.objectives.dapo import dapo
from iiblpo_jax.objectives.forking_tokens import highest_entropy
from iiblpo_jax.objectives.interface import Batch, Objective


def spine(
    *,
    max_tokens: int,
    clip_low=0.2,
    clip_high=0.28,
    aggregate="token-mean",
    fraction=0.2,
    band_coef=0.01,
    low=0.5,
    high=2.5,
) -> Objective:
    if low > high:
        raise InputError(f"objective.options.low = {low} exceeds objective.options.high = {high}; lower it")
    base = dapo(max_tokens=max_tokens, clip_low=clip_low, clip_high=clip_high, aggregate=aggregate)
    return dataclasses.replace(
        base,
        name="spine",
        token_mask=partial(highest_entropy, fraction=fraction),
        aux_losses=(EntropyBand(band_coef, low, high),) * bool(band_coef),
        whole_minibatch=True,
    )


@dataclasses.dataclass(frozen=True)
class EntropyBand:
    """The band term [R,T] of the module."""

    coef: float
    low: float
    high: float

    def __call__(self, batch: Batch) -> jax.Array:
        entropy_RT = batch.entropy_RT
        return self.coef * (jax.nn.relu(self.low - entropy_RT) + jax.nn.relu(entropy_RT - self.high))
