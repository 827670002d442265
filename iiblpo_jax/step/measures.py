"""What a step is watched by before its update: `reward/*` and `rollout/*`. In graph."""

import jax
import jax.numpy as jnp

from iiblpo_jax.bottleneck import Selection
from iiblpo_jax.common import masked
from iiblpo_jax.rewards.scorer import CORRECT
from iiblpo_jax.rollout.forest import DONE, LENGTH, Forest


def reward_metrics(
    forest: Forest, reward_R: jax.Array, correct_R: jax.Array, shaped_R: jax.Array, selection: Selection
) -> dict[str, jax.Array]:
    """Scalars `reward/*` over what was grown, and `reward/root_*` over the roots alone.

    Roots are samples of the policy. What all trajectories come to depends on which roots have branches, too.

    Args:
      forest, reward_R, correct_R, selection: of the step.
      shaped_R: the rewards that advantages are made of: `frac_zero_std` is about those of the kept.
    """
    grown_PG = forest.by_prompt(forest.length_R > 0)
    spread_P = masked.spread(forest.by_prompt(shaped_R), selection.kept_PG, axis=1) > 0
    return _policy_metrics(forest, reward_R, correct_R) | {
        "reward/frac_zero_std": 1.0 - spread_P.mean(),
        "reward/frac_kept": masked.mean(selection.kept_PG, grown_PG),
    }


@jax.jit
def sampled_metrics(forest: Forest, reward_R: jax.Array) -> dict[str, jax.Array]:
    """The scalars of a rollout that depend on no selection: those of `rollout_metrics`, `branch_metrics` and all of
    `reward_metrics` but two."""
    correct_R = (reward_R >= CORRECT).astype(jnp.float32)
    return _policy_metrics(forest, reward_R, correct_R) | rollout_metrics(forest) | branch_metrics(forest, correct_R)


def _policy_metrics(forest: Forest, reward_R: jax.Array, correct_R: jax.Array) -> dict[str, jax.Array]:
    reward_PG, correct_PG = forest.by_prompt(reward_R), forest.by_prompt(correct_R) > 0
    grown_PG, root_PG = forest.by_prompt(forest.length_R > 0), forest.by_prompt(forest.parent_R < 0)
    mixed_P = correct_PG.any(1) & (grown_PG & ~correct_PG).any(1)
    return {
        "reward/mean": masked.mean(reward_PG, grown_PG),
        "reward/pass@1": masked.mean(correct_PG, grown_PG),
        "reward/pass@group": correct_PG.any(1).mean(),
        "reward/root_mean": masked.mean(reward_PG, root_PG),
        "reward/root_pass@1": masked.mean(correct_PG, root_PG),
        "reward/root_pass@group": (correct_PG & root_PG).any(1).mean(),
        "reward/frac_mixed": mixed_P.mean(),
    }


def rollout_metrics(forest: Forest) -> dict[str, jax.Array]:
    """Scalars `rollout/*` of a Forest; lengths in tokens, entropy in nats over the tokens that were drawn.

    `root_*`: of the roots alone, samples of the policy.
    """
    grown_R, root_R = forest.length_R > 0, forest.parent_R < 0
    branch_R = grown_R & ~root_R
    return {
        "rollout/length_mean": masked.mean(forest.length_R, grown_R),
        "rollout/length_p95": jnp.nanpercentile(jnp.where(grown_R, forest.length_R, jnp.nan), 95),
        "rollout/truncated": masked.mean(forest.finish_R == LENGTH, grown_R),
        "rollout/root_length_mean": masked.mean(forest.length_R, root_R),
        "rollout/root_truncated": masked.mean(forest.finish_R == LENGTH, root_R),
        "rollout/entropy": masked.mean(forest.entropy_RT, forest.own_RT),
        "rollout/branches": branch_R.sum() / root_R.sum(),  # a root
        "rollout/branch_fallback": masked.mean(forest.fallback_R, branch_R),
    }


def turn_metrics(forest: Forest, correct_R: jax.Array, seen_R: jax.Array | None) -> dict[str, jax.Array]:
    """Scalars `turns/*` of responses whose turns are answered, over what was grown.

    answered: observations a response. given: share of the tokens that are theirs. done: ended by the environment.
    Where a method asks when the gold answer came into sight, the two ways in which a reward for the outcome alone makes
    everything the same (arXiv 2601.22776), and what its latent reward makes of the second:
    near_miss: wrong responses that have seen the answer, a share of all; they are paid like those that have not.
    all_wrong: prompts whose responses are all wrong, a share of all. rescued: of these, those of which some responses
    have seen the answer, or saw it in other turns than others, and so are told apart.

    Args:
      forest, correct_R: of the step.
      seen_R: turn whose observation first says the gold answer, -1: none; None where nobody asks.
    """
    assert forest.turn_RT is not None
    grown_R, answered_R = forest.length_R > 0, jnp.where(forest.emitted_RT, jnp.abs(forest.turn_RT), 0).max(1)
    found = {
        "turns/answered": masked.mean(answered_R, grown_R),
        "turns/given": masked.mean(forest.turn_RT < 0, forest.emitted_RT),
        "turns/done": masked.mean(forest.finish_R == DONE, grown_R),
    }
    if seen_R is None:
        return found
    grown_PG, seen_PG = forest.by_prompt(grown_R), forest.by_prompt(seen_R)
    failed_P = ~(forest.by_prompt(correct_R) > 0).any(1)
    return found | {
        "turns/near_miss": masked.mean((seen_R >= 0) & (correct_R == 0), grown_R),
        "turns/all_wrong": failed_P.mean(),
        "turns/rescued": masked.mean(masked.spread(seen_PG, grown_PG, axis=1) > 0, failed_P),
    }


def branch_metrics(forest: Forest, correct_R: jax.Array) -> dict[str, jax.Array]:
    """Shares of the branches, `rollout/branch_*`: what branching costs and changes.

    suffix: tokens that a branch generates, of all that it has.
    same_token: the first own token is the one that the parent has there, of branches that are no fallback.
    copies: the whole response is the parent's.
    flips: right where the parent is wrong, or the other way round.

    Args:
      forest: of the step.
      correct_R: 1 of right answers.
    """
    branch_R = (forest.length_R > 0) & (forest.parent_R >= 0)
    tokens_RT, length_R, were_right_R = (_of_parents(forest, x) for x in (forest.tokens_RT, forest.length_R, correct_R))
    same_RT = forest.tokens_RT == tokens_RT  # 0 behind the end of either
    same_first_R = jnp.take_along_axis(same_RT, forest.branch_at_R[:, None], axis=1)[:, 0]
    suffix_R = (forest.length_R - forest.branch_at_R) / jnp.maximum(forest.length_R, 1)
    return {
        "rollout/branch_suffix": masked.mean(suffix_R, branch_R),
        "rollout/branch_same_token": masked.mean(same_first_R, branch_R & ~forest.fallback_R),
        "rollout/branch_copies": masked.mean(same_RT.all(1) & (forest.length_R == length_R), branch_R),
        "rollout/branch_flips": masked.mean(correct_R != were_right_R, branch_R),
    }


def _of_parents(forest: Forest, x_R: jax.Array) -> jax.Array:
    """What is said of a branch's parent, in the row of the branch; prompt by prompt, so that a device takes from its
    own. Anything in the rows of roots."""
    x_PG = forest.by_prompt(x_R)
    first_P1 = jnp.arange(x_PG.shape[0])[:, None] * forest.group_size
    parent_PG = jnp.maximum(forest.by_prompt(forest.parent_R) - first_P1, 0)
    return jax.vmap(lambda x_G, parent_G: x_G[parent_G])(x_PG, parent_PG).reshape(x_R.shape)
