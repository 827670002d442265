"""How far a model's next-token distributions are from a teacher's: the generalised Jensen-Shannon divergence.

With P the teacher, Q the student and M = beta P + (1 - beta) Q (GKD, Agarwal et al., arXiv 2306.13649, equation 1):

    JSD_beta(P, Q) = beta KL(P || M) + (1 - beta) KL(Q || M),   0 < beta < 1

It vanishes at both ends; beta = 0 stands for KL(P || Q), which JSD_beta / beta tends to, and beta = 1 for KL(Q || P).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

LEAST = 1e-6  # probability at least of all tokens but the K likeliest, whose log is asked for


class Teacher(struct.PyTreeNode):
    """What the distribution of every token is compared with; constants.

    Attributes:
      columns: [..., T, ...] of the tokens: (h_BTD,), final hidden states of the teacher; or (token_BTK, logp_BTK), its
        K likeliest tokens.
      w_VD: its output weights, over the student's vocabulary; None with the likeliest tokens.
      beta: of the divergence; static.
      contrast: (alpha, k) of contrast.shift, which then stands in place of the divergence; static. None = it does not.
    """

    columns: tuple[jax.Array, ...]
    w_VD: jax.Array | None = None
    beta: float = struct.field(pytree_node=False, default=0.0)
    contrast: tuple[float, int] | None = struct.field(pytree_node=False, default=None)


def over_vocabulary(w_VD: jax.Array, size: int) -> jax.Array:
    """Output weights of a teacher over so many ids; models with one tokenizer pad theirs differently.

    The ids that only one of the two has are none of the tokenizer's, and so have no probability (never_ids).
    """
    w_VD = w_VD[:size]
    return jnp.pad(w_VD, [(0, size - w_VD.shape[0]), (0, 0)])


def kl(p_V: jax.Array, q_V: jax.Array) -> jax.Array:
    """KL(P || Q) [...] in nats, of log-probabilities [...,V]."""
    return jnp.sum(jnp.exp(p_V) * (p_V - q_V), axis=-1)


def generalised_jsd(student_V: jax.Array, teacher_V: jax.Array, beta: float) -> jax.Array:
    """JSD_beta [...] in nats, of log-probabilities [...,V]; see the module for the ends."""
    if beta == 0:
        return kl(teacher_V, student_V)
    if beta == 1:
        return kl(student_V, teacher_V)
    mixture_V = jnp.logaddexp(jnp.log1p(-beta) + student_V, jnp.log(beta) + teacher_V)
    return beta * kl(teacher_V, mixture_V) + (1 - beta) * kl(student_V, mixture_V)


def likeliest_jsd(student_V: jax.Array, token_K: jax.Array, teacher_K: jax.Array, beta: float) -> jax.Array:
    """JSD_beta [...] where all tokens but the teacher's K likeliest count as one.

    At most that of the whole vocabulary, whatever is lumped together (data processing), and 0 where they are equal.

    Args:
      student_V: log-probabilities [...,V].
      token_K, teacher_K: the tokens [...,K] and the teacher's log-probabilities of them.
      beta: of the divergence.
    """
    student_K = jnp.take_along_axis(student_V, token_K, axis=-1)
    return generalised_jsd(_with_rest(student_K), _with_rest(teacher_K), beta)


def _with_rest(logp_K: jax.Array) -> jax.Array:
    rest = 1.0 - jnp.exp(logp_K).sum(-1, keepdims=True)
    return jnp.concatenate([logp_K, jnp.log(jnp.maximum(rest, LEAST))], axis=-1)
