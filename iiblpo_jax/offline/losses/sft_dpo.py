"""SFT-DPO: DPO that holds on to the chosen response by its likelihood (as in Yan et al., arXiv 2406.07327).

    L = L_DPO - weight * log pi(y+)

The likelihood is of the whole response, as there; the default weight is ours.
"""

from functools import partial

import jax

from iiblpo_jax.common import masked
from iiblpo_jax.offline.losses.flex_dpo import preference
from iiblpo_jax.offline.losses.interface import CHOSEN, REJECTED, Loss, Read


def sft_dpo(*, beta=0.1, weight=0.1) -> Loss:
    """The module's loss, a mean over pairs."""
    return Loss(name="sft_dpo", function=partial(anchored, beta=beta, weight=weight), reference=True)


def anchored(read: Read, *, beta: float, weight: float) -> jax.Array:
    """The module's formula."""
    held = masked.mean(read.logp_PG[:, CHOSEN], read.there(CHOSEN, REJECTED))
    return preference(read, beta_chosen=beta, beta_rejected=beta) - weight * held
