"""Flex-DPO (Yan et al., arXiv 2406.07327): DPO with a strength of its own for the chosen and the rejected response.

    L = -log sigmoid(beta+ log(pi(y+) / pi_ref(y+)) - beta- log(pi(y-) / pi_ref(y-)))

Of DPO's gradient |dL/dpi-| / |dL/dpi+| = pi+ / pi-, which grows as the rejected response is pushed down; beta- below
beta+ holds it back by their ratio.
"""

from functools import partial

import jax

from iiblpo_jax.common import masked
from iiblpo_jax.offline.losses.interface import CHOSEN, REJECTED, Loss, Read


def flex_dpo(*, beta_chosen=0.1, beta_rejected=0.05) -> Loss:
    """The module's loss, a mean over pairs."""
    loss = partial(preference, beta_chosen=beta_chosen, beta_rejected=beta_rejected)
    return Loss(name="flex_dpo", function=loss, reference=True)


def preference(read: Read, *, beta_chosen: float, beta_rejected: float) -> jax.Array:
    """The module's formula."""
    margin_P = beta_chosen * read.gain_PG[:, CHOSEN] - beta_rejected * read.gain_PG[:, REJECTED]
    return masked.mean(jax.nn.softplus(-margin_P), read.there(CHOSEN, REJECTED))
