"""NPO, negative preference optimization (Zhang et al., arXiv 2404.05868, eq. 3): DPO without a chosen response.

    L = -2 / beta * log sigmoid(-beta log(pi(y-) / pi_ref(y-)))

For beta -> 0 its gradient is that of ascending the likelihood; what is forgotten already is pushed less and less.
"""

from functools import partial

import jax

from iiblpo_jax.common import masked
from iiblpo_jax.offline.losses.interface import REJECTED, Loss, Read


def npo(*, beta=0.1) -> Loss:
    """The module's loss, a mean over rejected responses."""
    return Loss(name="npo", function=partial(negative, beta=beta), reference=True)


def negative(read: Read, *, beta: float) -> jax.Array:
    """The module's formula."""
    loss_P = 2.0 / beta * jax.nn.softplus(beta * read.gain_PG[:, REJECTED])
    return masked.mean(loss_P, read.there(REJECTED))
