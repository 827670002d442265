"""Between rollout and update: rewards become scores, a kept set, advantages and the rows of the update. In graph.

1. inform   the frozen reference model reads the Forest: both information terms, reference log-probs
            (needs no reward, so it runs while the host verifies answers)
2. score    S_IB, rank, keep N a prompt; advantages over the kept group plus the self-reward
3. rows     the kept trajectories as the update takes them
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from iiblpo_jax import bottleneck
from iiblpo_jax.bottleneck import Information, Selection
from iiblpo_jax.common import masked
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.steering.psa import Latent, latent_inputs
from iiblpo_jax.objectives import Objective, Outcomes, advantages
from iiblpo_jax.rewards.scorer import CORRECT
from iiblpo_jax.rollout.forest import LENGTH, Forest
from iiblpo_jax.update.rows import UpdateRows


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreSpec:
    """Everything static about scoring; hashable.

    Attributes:
      model: architecture of the reference.
      objective: whose advantages are computed.
      estimator: `likelihood`, `entropy` or `none`.
      compression: of `likelihood`: `description` or `information`.
      beta, length_cost: of S_IB (bottleneck.selection).
      distinct: a trajectory that repeats another's tokens is not kept.
      rule, keep, keep_contrast: the filter; keep = N trajectories a prompt.
      surprise: power of how surprising a right answer to the prompt is, by which its advantages are weighed; 0 = off.
      reward_coef: weight of the self-reward.
      temperature: of reference log-probs, the rollout's.
      start_id: the empty context of the compression term.
      reference: reference log-probs are wanted although the estimator does not need them.
      pack_tokens: nodes of one reference forward (packing.py).
      attention: attention.impl, how they attend.
      mesh: devices among which prompts are split; None = one.
      levels: most branches on one path.
      latents: rows carry the latents of their path.
      half_life, strength: of z.
    """

    model: ModelConfig
    objective: Objective
    estimator: str
    compression: str
    beta: float
    length_cost: float
    distinct: bool
    rule: str
    keep: int
    keep_contrast: bool
    surprise: float
    reward_coef: float
    temperature: float
    start_id: int
    reference: bool
    pack_tokens: int
    attention: str
    mesh: Mesh | None
    levels: int
    latents: bool
    half_life: float
    strength: float


@struct.dataclass(kw_only=True)
class Scored:
    """Per-trajectory results for the rollout log, the rows of the update, and scalar metrics.

    Attributes:
      score_R: S_IB, standardised terms; 0 without an estimator.
      kept_R: bool.
      advantage_R: of kept trajectories (mean over tokens where the method's differs between tokens), 0 elsewhere.
      rows: UpdateRows of the kept trajectories.
      metrics: `reward/*`, `rollout/*`, `ib/*`.
    """

    score_R: jax.Array
    kept_R: jax.Array
    advantage_R: jax.Array
    rows: UpdateRows
    metrics: dict


@functools.partial(jax.jit, static_argnames="spec")
def score(
    forest: Forest,
    reward_R: jax.Array,
    information: Information | None,
    key: jax.Array,
    step: jax.Array,
    *,
    spec: ScoreSpec,
) -> Scored:
    """Ranks and filters the trajectories of every prompt and turns the kept ones into rows of the update.

    Args:
      forest: finished trajectories.
      reward_R: float32 in [0,1].
      information: from `inform`.
      key: PRNG key; only the `random` filter uses it.
      step: rollouts done so far, for objectives with a schedule.
      spec: static.
    """
    correct_R = reward_R >= CORRECT

    def by_prompt(x_R):
        return x_R.reshape(-1, forest.group_size)

    valid_PG = by_prompt(forest.length_R > 0)  # without its branches a sure root leaves rows empty
    everyone = _outcomes(forest, reward_R, step)
    score_PG = by_prompt(_scores(spec, forest, everyone, information, valid_PG))
    counts_PG = valid_PG
    if spec.distinct:
        tokens_PGT = forest.tokens_RT.reshape(*valid_PG.shape, -1)
        counts_PG &= bottleneck.first_of_its_kind(tokens_PGT, by_prompt(forest.length_R), valid_PG)
    selection = bottleneck.select(
        score_PG,
        by_prompt(correct_R),
        counts_PG,
        rule=spec.rule,
        keep=spec.keep,
        keep_contrast=spec.keep_contrast,
        key=key,
        reward_PG=by_prompt(reward_R),
    )
    kept_R = selection.kept_PG.ravel()
    outcomes = everyone.replace(keep_R=kept_R, ib_score_R=score_PG.ravel())
    advantage = advantages(spec.objective, outcomes, reward_coef=spec.reward_coef)
    if spec.surprise:
        bits_R = jnp.repeat(bottleneck.surprise(by_prompt(reward_R), valid_PG), forest.group_size)
        advantage *= (bits_R**spec.surprise).reshape(-1, *[1] * (advantage.ndim - 1))
    rows = _rows(
        spec, forest, kept_R, jnp.sort(selection.keep_PN, axis=1), reward_R, score_PG.ravel(), advantage, information
    )
    per_row_R = advantage if advantage.ndim == 1 else masked.mean(advantage, forest.mask_RT, axis=1)
    metrics = _reward_metrics(by_prompt(reward_R), by_prompt(correct_R), valid_PG, selection)
    metrics |= _rollout_metrics(forest)
    if spec.estimator != "none":
        metrics |= bottleneck.bottleneck_metrics(
            score_PG,
            selection,
            by_prompt(correct_R),
            by_prompt(forest.length_R),
            valid_PG,
            information=information if spec.estimator == "likelihood" else None,
        )
    return Scored(score_R=score_PG.ravel(), kept_R=kept_R, advantage_R=per_row_R, rows=rows, metrics=metrics)


def _outcomes(forest: Forest, reward_R, step) -> Outcomes:
    return Outcomes(
        reward_R=reward_R,
        group_R=forest.group_R,
        correct_R=(reward_R >= CORRECT).astype(jnp.float32),
        length_R=forest.length_R,
        trajectory_R=jnp.arange(reward_R.shape[0]),
        parent_R=forest.parent_R,
        branch_at_R=forest.branch_at_R,
        mask_RT=forest.mask_RT.astype(jnp.float32),
        step=step,
    )


def _scores(spec: ScoreSpec, forest: Forest, outcomes: Outcomes, information, valid_PG) -> jax.Array:
    """S_IB of every trajectory [R]."""
    if spec.estimator == "likelihood":

        def by_prompt(x_R):
            return x_R.reshape(valid_PG.shape)

        return bottleneck.likelihood_score(
            by_prompt(information.answer_R),
            by_prompt(information.prompt_R),
            by_prompt(forest.length_R),
            valid_PG,
            beta=spec.beta,
            length_cost=spec.length_cost,
        ).ravel()
    if spec.estimator == "entropy":
        advantage = advantages(spec.objective, outcomes)
        advantage_RT = advantage if advantage.ndim == 2 else advantage[:, None]
        return bottleneck.entropy_score(advantage_RT, forest.entropy_RT, forest.mask_RT)
    return jnp.zeros_like(outcomes.reward_R)


def _rows(spec: ScoreSpec, forest: Forest, kept_R, keep_PN, reward_R, score_R, advantage, information) -> UpdateRows:
    prompt_len_R = forest.prompt_len_P[forest.group_R]

    # A group with too few finite scores fills its places with trajectories that are not kept; no token of them counts.
    def count(mask_RT):
        return (mask_RT & kept_R[:, None]).astype(jnp.float32)

    rows = UpdateRows(
        tokens_NC=forest.sequences_RC,
        prompt_len_N=prompt_len_R,
        mask_NT=count(forest.mask_RT),
        own_mask_NT=count(forest.own_RT),
        rollout_logp_NT=forest.logp_RT,
        raw_logp_NT=forest.raw_logp_RT,
        advantage_N=advantage,
        reward_N=reward_R,
        correct_N=(reward_R >= CORRECT).astype(jnp.float32),
        ib_score_N=score_R,
        group_N=forest.group_R,
        length_N=forest.length_R,
        trajectory_N=jnp.arange(reward_R.shape[0]),
        parent_N=forest.parent_R,
        branch_at_N=forest.branch_at_R,
        ref_logp_NT=None if information is None else information.ref_logp_RT,
        latent=_latent(spec, forest, prompt_len_R),
    )

    def keep(x_R):  # prompt by prompt, so that a device takes from its own
        x_PN = jax.vmap(lambda x_G, keep_N: x_G[keep_N])(x_R.reshape(keep_PN.shape[0], -1, *x_R.shape[1:]), keep_PN)
        return x_PN.reshape(-1, *x_R.shape[1:])

    return jax.tree.map(keep, rows)


def _latent(spec: ScoreSpec, forest: Forest, prompt_len_R) -> Latent | None:
    if not spec.latents:
        return None
    z_RJZ, branch_at_RJ = forest.latent_path(spec.levels)
    width = forest.prompt_PS.shape[1] + forest.tokens_RT.shape[1]
    return latent_inputs(z_RJZ, branch_at_RJ, prompt_len_R, width, half_life=spec.half_life, strength=spec.strength)


def _reward_metrics(reward_PG, correct_PG, valid_PG, selection: Selection) -> dict:
    spread_P = masked.std(reward_PG, selection.kept_PG, axis=1) > 0
    mixed_P = correct_PG.any(1) & (valid_PG & ~correct_PG).any(1)
    return {
        "reward/mean": masked.mean(reward_PG, valid_PG),
        "reward/pass@1": masked.mean(correct_PG, valid_PG),
        "reward/pass@group": correct_PG.any(1).mean(),
        "reward/frac_zero_std": 1.0 - spread_P.mean(),
        "reward/frac_mixed": mixed_P.mean(),
        "reward/frac_kept": masked.mean(selection.kept_PG, valid_PG),
    }


def _rollout_metrics(forest: Forest) -> dict:
    grown_R = forest.length_R > 0
    branch_R = grown_R & (forest.parent_R >= 0)
    return {
        "rollout/length_mean": masked.mean(forest.length_R, grown_R),
        "rollout/length_p95": jnp.nanpercentile(jnp.where(grown_R, forest.length_R, jnp.nan), 95),
        "rollout/truncated": masked.mean(forest.finish_R == LENGTH, grown_R),
        "rollout/entropy": masked.mean(forest.entropy_RT, forest.own_RT),
        "rollout/branches": branch_R.sum() / (forest.parent_R < 0).sum(),  # a root
        "rollout/branch_fallback": masked.mean(forest.fallback_R, branch_R),
    }
