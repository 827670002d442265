"""What a step on pairs is watched by: what became of the chosen, of the rejected and of everything else.

DPO was found to drop the rejected response drastically, to degrade both to suppression, and to disperse what they lose
to responses that nobody has seen (Yan et al., arXiv 2406.07327). Of the pairs of a step, before it:

    pairs/count               pairs with both responses
    pairs/logp_chosen         mean log pi(y+), nats
    pairs/logp_rejected       mean log pi(y-), nats
    pairs/elsewhere           mean 1 - pi(y+) - pi(y-): what all other responses have
    pairs/log_gradient_ratio  mean log(|dL/dpi-| / |dL/dpi+|), of this loss; for DPO log pi+ - log pi-
    pairs/margin              mean log(pi+ / pi_ref+) - log(pi- / pi_ref-)
    pairs/accuracy            share of pairs with a margin above 0; both 0 where the loss reads no reference
"""

import jax
import jax.numpy as jnp

from iiblpo_jax.common import masked
from iiblpo_jax.offline.losses.interface import CHOSEN, REJECTED, Read


def diagnostics(read: Read, slope_PG: jax.Array) -> dict:
    """The metrics above; empty for cases without pairs.

    Args:
      read: of the step.
      slope_PG: gradient of the loss with respect to the log-probs.
    """
    if read.tokens_PG.shape[1] < 2:
        return {}
    pair_P = read.there(CHOSEN, REJECTED)
    chosen_P, rejected_P = read.logp_PG[:, CHOSEN], read.logp_PG[:, REJECTED]
    # dL/dpi = (dL/dlog pi) / pi
    both_P = pair_P & (slope_PG[:, CHOSEN] != 0) & (slope_PG[:, REJECTED] != 0)
    size_PG = jnp.log(jnp.where(both_P[:, None], jnp.abs(slope_PG), 1.0))
    ratio_P = size_PG[:, REJECTED] - size_PG[:, CHOSEN] + chosen_P - rejected_P
    margin_P = read.gain_PG[:, CHOSEN] - read.gain_PG[:, REJECTED]
    means = {
        "pairs/logp_chosen": chosen_P,
        "pairs/logp_rejected": rejected_P,
        "pairs/elsewhere": 1.0 - jnp.exp(chosen_P) - jnp.exp(rejected_P),
        "pairs/margin": margin_P,
        "pairs/accuracy": margin_P > 0,
    }
    found = {name: masked.mean(x_P, pair_P) for name, x_P in means.items()}
    return found | {"pairs/count": pair_P.sum(), "pairs/log_gradient_ratio": masked.mean(ratio_P, both_P)}
