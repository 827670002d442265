"""From information terms to the kept set: standardise within the prompt's group, score, rank, keep N, reward.

Shapes: P prompts, G = M * (1 + K) trajectories of one prompt, N kept of them.
"""

import jax
import jax.numpy as jnp
from flax import struct

from iiblpo_jax.common import masked

EPSILON = 1e-4  # nats, or reward: differences below it are float32 noise and must not be blown up to unit size
_STEP = 1e-3  # of a score: what two devices compute differently must not decide which of two equal trajectories stays


@struct.dataclass(kw_only=True)
class Selection:
    """Which trajectories of each prompt go on to the update.

    keep_PN: positions within the group, in descending score.
    kept_PG: the same set as a mask; trajectories that are not valid are never in it.
    rescued_P: True where `keep_contrast` swapped one in.
    """

    keep_PN: jax.Array
    kept_PG: jax.Array
    rescued_P: jax.Array

    @property
    def valid_PN(self) -> jax.Array:
        """False where a group had fewer than N valid trajectories and an invalid one fills the place."""
        return jnp.take_along_axis(self.kept_PG, self.keep_PN, axis=1)


def standardise(x_PG: jax.Array, valid_PG: jax.Array) -> jax.Array:
    """(x - mean) / (std + 1e-4) over the valid trajectories of each prompt; 0 for the others."""
    centred_PG = x_PG - masked.mean(x_PG, valid_PG, axis=1, keepdims=True)
    std_P1 = masked.std(x_PG, valid_PG, axis=1, keepdims=True)
    return jnp.where(valid_PG, centred_PG / (std_P1 + EPSILON), 0.0)


def likelihood_score(
    answer_PG: jax.Array,
    prompt_PG: jax.Array,
    length_PG: jax.Array,
    valid_PG: jax.Array,
    *,
    beta: float,
    length_cost: float = 0.0,
) -> jax.Array:
    """S_IB = beta * std(I(r; a)) - std(C(r) + length_cost * length / mean length), `std` = `standardise`.

    C is the compression term of `likelihood`: the description length of r, or I(q; r).

    Rounded to thousandths, so that equal trajectories tie on every mesh and the lower index wins.

    `length_cost` is nats a token, on the scale of C: what a token costs however predictable it is. A language model
    predicts a loop almost surely from the second round on, so its description length alone stops growing.
    """
    mean_P1 = jnp.mean(length_PG, axis=1, keepdims=True)
    cost_PG = prompt_PG + length_cost * length_PG / mean_P1
    score_PG = beta * standardise(answer_PG, valid_PG) - standardise(cost_PG, valid_PG)
    return jnp.round(score_PG / _STEP) * _STEP


def _top(priority_PG: jax.Array, n: int) -> jax.Array:
    """Positions of the n largest, ties to the lower index [P, N]."""
    return jnp.argsort(-priority_PG, axis=1, stable=True)[:, :n]


def _as_mask(index_PN: jax.Array, group: int) -> jax.Array:
    return jnp.any(index_PN[:, :, None] == jnp.arange(group), axis=1)


def _with_contrast(
    keep_PN: jax.Array, priority_PG: jax.Array, correct_PG: jax.Array, valid_PG: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Where one class of answer is missing from the kept set, its best replaces the worst that is kept."""
    kept_PG = _as_mask(keep_PN, correct_PG.shape[1]) & valid_PG
    has_right = jnp.any(kept_PG & correct_PG, axis=1, keepdims=True)
    has_wrong = jnp.any(kept_PG & ~correct_PG, axis=1, keepdims=True)
    missing_PG = valid_PG & ((correct_PG & ~has_right) | (~correct_PG & ~has_wrong))
    rescued_P = jnp.any(missing_PG, axis=1) & jnp.any(kept_PG, axis=1)
    best_P = jnp.argmax(jnp.where(missing_PG, priority_PG, -jnp.inf), axis=1)
    # keep_PN is in descending priority, so its last column is the worst kept.
    return keep_PN.at[:, -1].set(jnp.where(rescued_P, best_P, keep_PN[:, -1])), rescued_P


def first_of_its_kind(tokens_PGT: jax.Array, length_PG: jax.Array, valid_PG: jax.Array) -> jax.Array:
    """False for a trajectory whose tokens an earlier valid one of the same prompt has too, bool [P,G]."""
    group = length_PG.shape[1]

    def repeats(j):  # what repeats trajectory j
        same_PG = jnp.all(tokens_PGT == tokens_PGT[:, j, None], axis=-1) & (length_PG == length_PG[:, j, None])
        return same_PG & valid_PG[:, j, None] & (jnp.arange(group) > j)

    return ~jax.lax.map(repeats, jnp.arange(group)).any(0)


def contrast_priority(score_PG: jax.Array, reward_PG: jax.Array, valid_PG: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Priority [P,G] that takes the better and the worse half of a group in turns, and which groups have two [P].

    Better means a reward above the group's mean. Within a half the higher score comes first, so that N trajectories
    are as many of either kind as there are: the subset of the largest reward variance (for right and wrong answers;
    Xu et al., arXiv 2504.13818), and of those the one that the score ranks highest.
    """
    better_PG = valid_PG & (reward_PG > masked.mean(reward_PG, valid_PG, axis=1, keepdims=True) + EPSILON)
    worse_PG = valid_PG & ~better_PG
    ahead_PGG = (score_PG[:, None] > score_PG[:, :, None]) | (
        (score_PG[:, None] == score_PG[:, :, None]) & jnp.tri(score_PG.shape[1], k=-1, dtype=bool)
    )
    same_PGG = (better_PG[:, None] & better_PG[:, :, None]) | (worse_PG[:, None] & worse_PG[:, :, None])
    rank_PG = jnp.sum(ahead_PGG & same_PGG, axis=-1)
    return -(rank_PG + 0.5 * worse_PG), better_PG.any(1)


def select(
    score_PG: jax.Array,
    correct_PG: jax.Array,
    valid_PG: jax.Array,
    *,
    rule: str,
    keep: int,
    keep_contrast: bool,
    key: jax.Array,
    reward_PG: jax.Array,
) -> Selection:
    """The N trajectories of each prompt that the update sees, by `rule`.

    `score` keeps the best, `contrast` the best of either half in turns (`contrast_priority`) and nothing of a group
    whose rewards are all equal, `random` any N (the control: its contrast swap is random too, so nothing of the score
    leaks into it), `none` all G. `keep_contrast`: a group with right and wrong answers keeps both, if N > 1.
    Trajectories that are not valid, or whose score is not finite, rank last and are never in the kept mask.
    """
    group = score_PG.shape[1]
    valid_PG = valid_PG & jnp.isfinite(score_PG)
    priority_PG = jax.random.uniform(key, score_PG.shape) if rule == "random" else score_PG
    if rule == "contrast":
        score_PG = jnp.where(valid_PG, score_PG, 0.0)
        priority_PG, contrast_P = contrast_priority(score_PG, reward_PG, valid_PG)
        valid_PG = valid_PG & contrast_P[:, None]
    priority_PG = jnp.where(valid_PG, priority_PG, -jnp.inf)
    keep_PN = _top(priority_PG, group if rule == "none" else keep)
    rescued_P = jnp.zeros(score_PG.shape[0], bool)
    if keep_contrast and keep_PN.shape[1] > 1:
        keep_PN, rescued_P = _with_contrast(keep_PN, priority_PG, correct_PG, valid_PG)
    order_PN = _top(jnp.take_along_axis(jnp.where(valid_PG, score_PG, -jnp.inf), keep_PN, axis=1), keep_PN.shape[1])
    keep_PN = jnp.take_along_axis(keep_PN, order_PN, axis=1)
    return Selection(keep_PN=keep_PN, kept_PG=_as_mask(keep_PN, group) & valid_PG, rescued_P=rescued_P)
