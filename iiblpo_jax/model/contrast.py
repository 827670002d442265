"""Two distributions made of a reference's next-token logits, and how far a policy has gone from one to the other.

    memory     = softmax(h + alpha (h - h_(k+1))+)     the k likeliest tokens raised
    forgetting = softmax(h - alpha (h - h_(k+1))+)     the same lowered; alpha = 1: all as likely as the next one

DiPO (arXiv 2510.04773) raises and lowers the logits of the k likeliest tokens; that they are measured from the
(k+1)-th is ours, and makes the outcome independent of what a model adds to all logits of a token.
"""

import jax
import jax.numpy as jnp


def shift(logits_V: jax.Array, reference_V: jax.Array, alpha: float, k: int) -> jax.Array:
    """D(memory) - D(forgetting), where D(p) = KL(p || pi) - KL(p || pi_ref), of [..., V] logits; nats.

    Written out it is sum_v (forgetting - memory)_v (logit - reference)_v: entropies of p and normalisers of pi cancel.
    """
    above_V = jax.nn.relu(reference_V - jax.lax.top_k(reference_V, k + 1)[0][..., -1:])
    memory_V, forgetting_V = (jax.nn.softmax(reference_V + sign * alpha * above_V) for sign in (1, -1))
    return jnp.sum((forgetting_V - memory_V) * (logits_V - reference_V), axis=-1)
