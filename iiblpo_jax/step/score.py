"""Between rollout and update: rewards become scores, a kept set, advantages and rows of the update. In graph.

rows        every trajectory of the Forest as a row
ib_score    S_IB of each
select      N of each prompt are kept
credit      advantages over the kept group, the self-reward, the weight of the prompt
heard       what right answers are paid for telling their code
take        the kept rows, for the update
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import struct

from iiblpo_jax import bottleneck
from iiblpo_jax.bottleneck import Selection
from iiblpo_jax.bottleneck.dependence import dependence_bonus
from iiblpo_jax.common import masked
from iiblpo_jax.common.trees import TreeShape
from iiblpo_jax.environments.interface import SEEN
from iiblpo_jax.model.steering.code_tokens import put_codes
from iiblpo_jax.model.steering.psa import Latent, latent_inputs
from iiblpo_jax.objectives import Objective, Rows, advantages
from iiblpo_jax.objectives.rows import REF_LOGP, TOP_LOGP, TOP_TOKEN, TURN
from iiblpo_jax.objectives.weights import prompt_weights
from iiblpo_jax.rewards.scorer import CORRECT
from iiblpo_jax.rollout import strata
from iiblpo_jax.rollout.forest import LENGTH, Forest
from iiblpo_jax.step.inform import DEPENDENCE, Columns
from iiblpo_jax.step.measures import branch_metrics, reward_metrics, rollout_metrics, turn_metrics
from iiblpo_jax.step.proxy import ProxySpec


@dataclasses.dataclass(frozen=True, kw_only=True)
class BottleneckSpec:
    """S_IB (bottleneck/): estimator `likelihood`, `entropy` or `none`; beta and length_cost of `likelihood_score`."""

    estimator: str = "none"
    beta: float = 1.0
    length_cost: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterSpec:
    """Which trajectories of a prompt are kept (`bottleneck.select`).

    Attributes:
      rule: `score`, `contrast`, `random` or `none`.
      keep: N trajectories a prompt.
      keep_contrast: a group with right and wrong answers keeps both.
      distinct: a trajectory that repeats another's tokens is not kept.
      finished: nor is one that was cut at the longest response allowed; nothing is learnt from it.
    """

    rule: str
    keep: int
    keep_contrast: bool = False
    distinct: bool = False
    finished: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class StrataSpec:
    """Weights of branches without replacement (rollout/strata.py): the shape of their trees, and the power."""

    shape: TreeShape
    power: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class CreditSpec:
    """What a kept trajectory is worth.

    Attributes:
      objective: whose advantages are computed.
      weight, power: of the prompt (objectives/weights.py).
      reward_coef: weight of the self-reward.
      selective: which roots have branches depends on what they said. Then branches are no sample of the policy's
        answers, and what a prompt's answers are compared with and weighed by is taken from its roots alone.
      strata: how branches without replacement are weighed; None with replacement.
    """

    objective: Objective
    weight: str = "none"
    power: float = 1.0
    reward_coef: float = 0.0
    selective: bool = False
    strata: StrataSpec | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatentSpec:
    """The latents that rows carry: most branches on one path; half-life (tokens) and strength of z (psa.gamma)."""

    levels: int
    half_life: float
    strength: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodesSpec:
    """Codes of whole responses.

    Attributes:
      trees: M, of a prompt.
      dependence: what a right answer is paid for a nat that it says of its code.
      most: nats that are paid for, or taken off, at most.
    """

    trees: int
    dependence: float = 0.0
    most: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreSpec:
    """Everything static about scoring, part by part; hashable. `latent`, `codes` are None where no row has one, `proxy`
    where the verifier's rewards are learnt from."""

    bottleneck: BottleneckSpec
    filter: FilterSpec
    credit: CreditSpec
    latent: LatentSpec | None = None
    codes: CodesSpec | None = None
    proxy: ProxySpec | None = None


@struct.dataclass(kw_only=True)
class Scored:
    """Per-trajectory results for the rollout log, the rows of the update, and scalar metrics.

    Attributes:
      score_R: S_IB, standardised terms; 0 without an estimator.
      kept_R: bool.
      advantage_R: of kept trajectories (mean over tokens where the method's differs between tokens), 0 elsewhere.
      rows: the kept trajectories.
      metrics: `reward/*`, `rollout/*`, `ib/*`.
    """

    score_R: jax.Array
    kept_R: jax.Array
    advantage_R: jax.Array
    rows: Rows
    metrics: dict


@functools.partial(jax.jit, static_argnames="spec")
def score(
    forest: Forest, reward_R: jax.Array, columns: Columns, key: jax.Array, step: jax.Array, *, spec: ScoreSpec
) -> Scored:
    """Ranks and filters the trajectories of every prompt and turns the kept ones into rows of the update.

    Args:
      forest: finished trajectories.
      reward_R: float32 in [0,1], the verifier's.
      columns: of `inform`.
      key: PRNG key; only the `random` filter uses it.
      step: rollouts done so far, for objectives with a schedule.
      spec: static.
    """
    rows = every_row(forest, reward_R, columns, spec)
    sample_R = rows.keep_R & (~spec.credit.selective | (rows.parent_R < 0))
    rows = rows.replace(
        baseline_R=sample_R if spec.credit.selective else None, weight_R=row_weights(spec.credit.strata, forest)
    )
    rows = rows.replace(ib_score_R=ib_score(spec, forest, rows, columns))
    selection = select(spec.filter, forest, rows, key)
    rows = rows.replace(keep_R=selection.kept_PG.ravel())
    rows = rows.replace(advantage_R=credit(spec.credit, forest, rows, sample_R, step))
    rows = rows.replace(advantage_R=heard(spec.codes, rows, columns))
    a = rows.advantage_R
    return Scored(
        score_R=rows.ib_score_R,
        kept_R=rows.keep_R,
        advantage_R=a if a.ndim == 1 else masked.mean(a, forest.mask_RT, axis=1),
        rows=take(rows.replace(baseline_R=None, weight_R=None), selection),  # what they were for is done
        metrics=_metrics(spec, forest, rows, reward_R, selection, columns, step),
    )


def every_row(forest: Forest, reward_R: jax.Array, columns: Columns, spec: ScoreSpec) -> Rows:
    """All trajectories as rows, nothing assigned to them yet; what is not grown, or not wanted, is not kept."""
    prompt_len_R, latent = forest.prompt_len_P[forest.group_R], spec.latent
    grown_R = forest.length_R > 0
    return Rows(
        tokens_RC=_tokens(spec.codes, forest, prompt_len_R),
        prompt_len_R=prompt_len_R,
        length_R=forest.length_R,
        mask_RT=forest.mask_RT.astype(jnp.float32),
        own_mask_RT=forest.own_RT.astype(jnp.float32),
        raw_logp_RT=forest.raw_logp_RT,
        reward_R=reward_R if spec.proxy is None else spec.proxy.paid(reward_R, columns),
        correct_R=(reward_R >= CORRECT).astype(jnp.float32),
        group_R=forest.group_R,
        trajectory_R=jnp.arange(reward_R.shape[0]),
        parent_R=forest.parent_R,
        branch_at_R=forest.branch_at_R,
        keep_R=grown_R & (forest.finish_R != LENGTH) if spec.filter.finished else grown_R,
        ib_score_R=jnp.zeros_like(reward_R),
        advantage_R=jnp.zeros_like(reward_R),
        ref_logp_RT=columns.get(REF_LOGP),
        latent=None if latent is None else _latent(latent, forest, prompt_len_R),
        extras=_extras(spec.credit.objective, forest, columns),
    )


def _tokens(spec: CodesSpec | None, forest: Forest, prompt_len_R) -> jax.Array:
    """Prompt and response of every trajectory as the policy saw them, its code in its place."""
    if spec is None:
        return forest.sequences_RC
    return put_codes(forest.sequences_RC, prompt_len_R, forest.code_R(spec.trees))


def _extras(method: Objective, forest: Forest, columns: Columns) -> dict:
    """What the method asks for that is no field of Rows."""
    noted = {TOP_TOKEN: forest.top_token_RTK, TOP_LOGP: forest.top_logp_RTK} if method.record else {}
    given = columns | ({} if forest.turn_RT is None else {TURN: forest.turn_RT})
    return {name: given[name] for name in method.needs if name != REF_LOGP} | noted


def row_weights(spec: StrataSpec | None, forest: Forest) -> jax.Array | None:
    """What every trajectory counts for [R]; None with replacement."""
    if spec is None:
        return None

    def by_tree(x_R):
        return x_R.reshape(-1, len(spec.shape.parent_J))

    grown_NJ = by_tree(forest.length_R > 0)
    mass_NJ = strata.masses(by_tree(forest.left_R), by_tree(forest.branch_at_R), grown_NJ, spec.shape)
    return strata.weights(mass_NJ, grown_NJ, power=spec.power).ravel()


def _latent(spec: LatentSpec, forest: Forest, prompt_len_R) -> Latent:
    z_RJZ, branch_at_RJ = forest.latent_path(spec.levels)
    width = forest.prompt_PS.shape[1] + forest.tokens_RT.shape[1]
    return latent_inputs(z_RJZ, branch_at_RJ, prompt_len_R, width, half_life=spec.half_life, strength=spec.strength)


def ib_score(spec: ScoreSpec, forest: Forest, rows: Rows, columns: Columns) -> jax.Array:
    """S_IB of every trajectory [R]."""
    ib = spec.bottleneck
    if ib.estimator == "likelihood":
        answer_PG, prompt_PG = (forest.by_prompt(columns[name]) for name in ("ib_answer", "ib_prompt"))
        length_PG, grown_PG = forest.by_prompt(forest.length_R), forest.by_prompt(rows.keep_R)
        return bottleneck.likelihood_score(
            answer_PG, prompt_PG, length_PG, grown_PG, beta=ib.beta, length_cost=ib.length_cost
        ).ravel()
    if ib.estimator == "entropy":
        assigned = rows.replace(advantage_R=advantages(spec.credit.objective, rows))
        return bottleneck.entropy_score(assigned.advantage_RT, forest.entropy_RT, forest.mask_RT)
    return rows.ib_score_R


def select(spec: FilterSpec, forest: Forest, rows: Rows, key: jax.Array) -> Selection:
    """The kept trajectories of every prompt."""
    counts_PG = grown_PG = forest.by_prompt(rows.keep_R)
    if spec.distinct:
        tokens_PGT, length_PG = forest.by_prompt(forest.tokens_RT), forest.by_prompt(forest.length_R)
        counts_PG &= bottleneck.first_of_its_kind(tokens_PGT, length_PG, grown_PG)
    return bottleneck.select(
        forest.by_prompt(rows.ib_score_R),
        forest.by_prompt(rows.correct_R) > 0,
        counts_PG,
        rule=spec.rule,
        keep=spec.keep,
        keep_contrast=spec.keep_contrast,
        key=key,
        reward_PG=forest.by_prompt(rows.reward_R),
    )


def credit(spec: CreditSpec, forest: Forest, rows: Rows, sample_R: jax.Array, step: jax.Array) -> jax.Array:
    """Advantages [R] or [R,T], the weight of the prompt included.

    `sample_R`: the trajectories from which the share of right answers is taken, kept or not: what the filter left out
    was an answer too.
    """
    advantage = advantages(spec.objective, rows, reward_coef=spec.reward_coef, step=step)
    per_row = (...,) + (None,) * (advantage.ndim - 1)
    if rows.weight_R is not None:
        advantage *= rows.weight_R[per_row]
    if spec.weight == "none":
        return advantage
    counts_PG = None if rows.weight_R is None else forest.by_prompt(rows.weight_R)
    reward_PG, sample_PG = forest.by_prompt(rows.reward_R), forest.by_prompt(sample_R)
    weight_P = prompt_weights(reward_PG, sample_PG, weight=spec.weight, power=spec.power, counts_PG=counts_PG)
    return advantage * jnp.repeat(weight_P, forest.group_size)[per_row]


def heard(spec: CodesSpec | None, rows: Rows, columns: Columns) -> jax.Array:
    """Advantages [R] or [R,T] with what right answers are paid for telling their code: after normalisation and the
    weight of the prompt, so that neither makes a full-size advantage of a small difference."""
    advantage, w_R = rows.advantage_R, rows.weight_R
    if spec is None or not spec.dependence:
        return advantage
    right_R = rows.keep_R & (rows.correct_R > 0)
    bonus_R = spec.dependence * dependence_bonus(columns[DEPENDENCE], right_R, most=spec.most, weight_R=w_R)
    bonus_R = bonus_R if w_R is None else bonus_R * w_R
    return advantage + bonus_R[(...,) + (None,) * (advantage.ndim - 1)]


def take(rows: Rows, selection: Selection) -> Rows:
    """The kept rows, in the order of the Forest, those of a prompt contiguous."""
    # A group with too few finite scores fills its places with trajectories that are not kept; no token of them counts.
    counted_R1 = rows.keep_R[:, None].astype(jnp.float32)
    rows = rows.replace(mask_RT=rows.mask_RT * counted_R1, own_mask_RT=rows.own_mask_RT * counted_R1)
    keep_PN = jnp.sort(selection.keep_PN, axis=1)

    def keep(x_R):  # prompt by prompt, so that a device takes from its own
        x_PN = jax.vmap(lambda x_G, keep_N: x_G[keep_N])(x_R.reshape(keep_PN.shape[0], -1, *x_R.shape[1:]), keep_PN)
        return x_PN.reshape(-1, *x_R.shape[1:])

    return jax.tree.map(keep, rows)


def _metrics(
    spec: ScoreSpec,
    forest: Forest,
    rows: Rows,
    reward_R: jax.Array,
    selection: Selection,
    columns: Columns,
    step: jax.Array,
) -> dict:
    shaped_R = spec.credit.objective.reward_shaping(rows, step)
    metrics = reward_metrics(forest, reward_R, rows.correct_R, shaped_R, selection)
    metrics |= rollout_metrics(forest) | branch_metrics(forest, rows.correct_R)
    if DEPENDENCE in columns:  # over the roots, samples of the policy
        metrics |= {"latent/information": masked.mean(columns[DEPENDENCE], forest.parent_R < 0)}
    metrics |= {} if spec.proxy is None else spec.proxy.metrics(forest, reward_R, columns)
    correct_PG, grown_PG = forest.by_prompt(rows.correct_R) > 0, forest.by_prompt(forest.length_R > 0)
    if forest.turn_RT is not None:
        metrics |= turn_metrics(forest, rows.correct_R, columns.get(SEEN))
    if spec.bottleneck.estimator == "none":
        return metrics
    return metrics | bottleneck.bottleneck_metrics(
        forest.by_prompt(rows.ib_score_R),
        selection,
        correct_PG,
        forest.by_prompt(forest.length_R),
        grown_PG,
        terms={name: columns[name] for name in ("ib_answer", "ib_prompt") if name in columns},
    )
