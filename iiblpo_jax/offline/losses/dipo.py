"""DiPO, distribution preference optimization (Qin et al., arXiv 2510.04773): unlearning token by token.

The preferred next-token distribution is one that forgets, the dispreferred one remembers; both are made of the
reference by lowering and raising its k likeliest tokens (model/contrast.py):

    D(p) = sum_t KL(p_t || pi_t) - KL(p_t || pi_ref,t)     over the tokens of the rejected response
    L    = -log sigmoid(beta (D(memory) - D(forgetting)))

The authors' constants are not known to us: this is a reconstruction from the abstract, and alpha, k and beta are ours.
"""

from functools import partial

import jax

from iiblpo_jax.common import masked
from iiblpo_jax.offline.losses.interface import REJECTED, Loss, Read


def dipo(*, beta=0.1, alpha=1.0, k=5) -> Loss:
    """The module's loss, a mean over rejected responses."""
    return Loss(name="dipo", function=partial(forgetting, beta=beta), contrast=(alpha, k))


def forgetting(read: Read, *, beta: float) -> jax.Array:
    """The module's formula: shifts are D(memory) - D(forgetting)."""
    return masked.mean(jax.nn.softplus(-beta * read.shift_PG[:, REJECTED]), read.there(REJECTED))
