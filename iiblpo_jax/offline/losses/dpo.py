"""DPO, direct preference optimization (Rafailov et al., arXiv 2305.18290, eq. 7).

L = -log sigmoid(beta (log(pi(y+) / pi_ref(y+)) - log(pi(y-) / pi_ref(y-))))
"""

from functools import partial

from iiblpo_jax.offline.losses.flex_dpo import preference
from iiblpo_jax.offline.losses.interface import Loss


def dpo(*, beta=0.1) -> Loss:
    """The module's loss, a mean over pairs."""
    return Loss(name="dpo", function=partial(preference, beta_chosen=beta, beta_rejected=beta), reference=True)
