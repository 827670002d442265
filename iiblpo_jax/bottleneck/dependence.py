"""What a response says of the code that it was drawn under: the variational bound of I(z; r | q).

    b(r, z) = log pi(r | q, z) - log mean over z' of pi(r | q, z')

over z itself and some other codes. Its mean over z ~ uniform, r ~ pi(. | q, z) is I(z; r | q) where the others are all
there are, and a lower bound of it, at most log(1 + others), where they are fewer, drawn at random (as in InfoNCE,
arXiv 1807.03748). As a reward for reasoning it is UpSkill's (arXiv 2602.22296), for skills DIAYN's (1802.06070).
"""

import math

import jax
import jax.numpy as jnp

from iiblpo_jax.bottleneck.information import Reading, join_texts, packed_texts
from iiblpo_jax.common import masked
from iiblpo_jax.common.padded import Padded
from iiblpo_jax.model.decoder import Decoder
from iiblpo_jax.model.steering.code_tokens import put_codes
from iiblpo_jax.rollout.forest import Forest


def dependence(model: Decoder, forest: Forest, *, trees: int, others: int, reading: Reading) -> jax.Array:
    """b [R] of every trajectory, nats; 0 of those that were not grown.

    All 1 + others readings of a response are made alike, by packed forwards: where the codes are one to the model, b is
    exactly 0.

    Args:
      model: the policy that drew them.
      forest: finished trajectories, drawn under codes.
      trees: M, of a prompt.
      others: codes that each one is compared with, below the number of codes.
      reading: at the temperature of the rollout.
    """
    plain, response = Padded(forest.prompt_PS, forest.prompt_len_P), Padded(forest.tokens_RT, forest.length_R)
    p, (prompt_RS, prompt_len_R) = forest.prompt_len_P.shape[0], plain.repeat(forest.group_size)

    def under(ahead: int):
        coded_RS = put_codes(prompt_RS, prompt_len_R, forest.code_R(trees, ahead))
        return join_texts([Padded(coded_RS, prompt_len_R)], response, p=p, width=plain.width + response.width)

    logp = packed_texts(model, [under(ahead) for ahead in range(1 + others)], response.width, reading)
    # Of what the policy drew: observations between its turns are no choice of its own.
    total_OR = jnp.stack([masked.sum(logp_PGT, forest.by_prompt(forest.mask_RT), axis=-1).ravel() for logp_PGT in logp])
    # As a difference to the code's own, so that equal readings cancel to the bit.
    return math.log(1 + others) - jax.nn.logsumexp(total_OR - total_OR[0], axis=0)


def dependence_bonus(b_R: jax.Array, right_R: jax.Array, *, most: float, weight_R: jax.Array | None = None):
    """b, cut to [-most, most], less its mean over the right answers [R]; 0 for the others.

    Right answers alone are paid: otherwise codes tell themselves apart by how they fail. Centred over the whole step,
    for in the group of one prompt and code there may be one response.

    Args:
      b_R: of `dependence`.
      right_R: bool, the right answers that are trained on.
      most: nats.
      weight_R: what trajectories count for; None = all alike.
    """
    cut_R = jnp.clip(b_R, -most, most)
    return jnp.where(right_R, cut_R - masked.mean(cut_R, right_R, weight=weight_R), 0.0)
