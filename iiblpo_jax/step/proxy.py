"""A reward model as what is learnt from: its reader of a Forest, what it pays, and what it is watched by. In graph.

The verifier's reward, the true one, is measured beside it in every step, so that the moment shows from which on the
model's reward rises and the true one falls (Gao et al., arXiv 2210.10760).
"""

import dataclasses

import jax

from iiblpo_jax.bottleneck import Reading
from iiblpo_jax.common import masked
from iiblpo_jax.common.padded import Padded
from iiblpo_jax.model.adapters.adapted import bound
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.packed.forward import last_states
from iiblpo_jax.model.reward import RewardModel
from iiblpo_jax.rollout.forest import Forest
from iiblpo_jax.rollout.solved import Gold

PROXY, DISTANCE, TAIL = "proxy", "proxy_distance", "proxy_tail"  # columns


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProxyReward:
    """Reads `proxy` [R], the model's reward of every trajectory, how far its latent is from those of the initial
    policy's responses, `proxy_distance` [R], and the probability that one of these is as far, `proxy_tail` [R].

    Attributes:
      model: architecture of the backbone.
      reading: how rows are packed.
    """

    model: ModelConfig
    reading: Reading

    def __call__(self, weights: RewardModel, forest: Forest, gold: Gold) -> dict[str, jax.Array]:
        """The columns, under these weights."""
        length_R = forest.prompt_len_P[forest.group_R] + forest.length_R
        mean_RZ = last_states(
            bound(self.model, weights.backbone),
            Padded(forest.sequences_RC, length_R),
            lambda h: weights.head.encode(h)[0],
            group=forest.group_size,
            tokens=self.reading.pack_tokens,
            shards=self.reading.shards,
            attention=self.reading.attention,
        )
        distance_R = weights.typical.distance(mean_RZ)
        return {
            PROXY: weights.head.reward(mean_RZ),
            DISTANCE: distance_R,
            TAIL: weights.typical.tail(distance_R),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProxySpec:
    """What a reward model pays; hashable.

    Attributes:
      coef: share of its reward; the verifier's has the rest.
      ibl_coef: lambda of IBL (arXiv 2510.13694), r' = r - lambda d: the price of a latent's distance.
      mop_alpha: significance level of MOP, from which on a response is an outlier.
    """

    coef: float
    ibl_coef: float
    mop_alpha: float

    def paid(self, reward_R: jax.Array, columns: dict[str, jax.Array]) -> jax.Array:
        """What is learnt from [R], of the verifier's rewards and the columns."""
        proxy_R = columns[PROXY] - self.ibl_coef * columns[DISTANCE]
        return (1 - self.coef) * reward_R + self.coef * proxy_R

    def metrics(self, forest: Forest, reward_R: jax.Array, columns: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Scalars over what was grown: both rewards, what is paid, the mean distance, and MOP, the Mahalanobis outlier
        probability: the share of responses whose latent is farther than all but `mop_alpha` of the initial policy's."""
        grown_R = forest.length_R > 0
        return {
            "reward/true": masked.mean(reward_R, grown_R),
            "reward/proxy": masked.mean(columns[PROXY], grown_R),
            "reward/paid": masked.mean(self.paid(reward_R, columns), grown_R),
            "reward/distance": masked.mean(columns[DISTANCE], grown_R),
            "reward/mop": masked.mean(columns[TAIL] < self.mop_alpha, grown_R),
        }
