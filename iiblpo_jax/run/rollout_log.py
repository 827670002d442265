"""The rollout log: every trajectory that a step learns from as a line of JSON.

With train.refills that is not every one that was sampled: groups which gave way to others are only counted, so that a
file is as long as any other and holds what off-line training takes.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from iiblpo_jax.common import masked
from iiblpo_jax.common.errors import warn
from iiblpo_jax.common.jsonl import plain, write_atomic
from iiblpo_jax.rewards.scorer import CORRECT
from iiblpo_jax.rollout.forest import FINISH_NAMES, Forest, by_token, response_tokens
from iiblpo_jax.run.graded import Graded
from iiblpo_jax.step.proxy import PROXY
from iiblpo_jax.step.sampled import Sampled
from iiblpo_jax.step.score import Scored

ROLLOUT_KEYS = (
    "step",
    "prompt_id",
    "trajectory",
    "parent",
    "branch_at",
    "text",
    "tokens",
    "reward",
    "correct",
    "entropy_mean",
    "ib_answer",
    "ib_prompt",
    "ib_score",
    "kept",
    "advantage",
    "finish",
    "question",
    "gold",
    "z",
    "code",
)
LOGPROBS, ENTROPIES = "logp", "entropies"  # one more key each with log.logprobs and log.entropies
LEFT = "left"  # and one with branch.replace=False
ROOT_CODE = "root_code"  # and one with codes.n; PROXY with reward.model


def write_rollouts(workdir: Path, step: int, columns: Mapping[str, Sequence]) -> Path:
    """Writes the trajectories of a step, one a line, to `WORKDIR/rollouts/step_NNNNNN.jsonl`; a full disk is a warning.

    Args:
        workdir: of the run.
        step: goes into every line.
        columns: ROLLOUT_KEYS but `step`, and LOGPROBS, ENTROPIES, LEFT, ROOT_CODE, PROXY where wanted -> R values, as
            lists or arrays. `tokens` holds whole responses as lists, `logp` and `entropies` as many numbers; `parent`
            is negative for roots, whose `branch_at` is then written as null too; `finish` is the code of the Forest;
            None or NaN (no such score, no z) becomes null, as does a negative `code`.

    Raises:
        ValueError: keys are missing or unknown, or columns differ in length.
    """
    extra = (LOGPROBS, ENTROPIES, LEFT, ROOT_CODE, PROXY)
    keys = (*ROLLOUT_KEYS, *(key for key in extra if key in columns))
    if unexpected := set(columns) ^ set(keys[1:]):
        raise ValueError(f"rollout keys missing or unknown: {sorted(unexpected)}")
    path = workdir / "rollouts" / f"step_{step:06d}.jsonl"
    path.parent.mkdir(exist_ok=True)
    values = zip(*(plain(columns[key]) for key in keys[1:]), strict=True)
    rows = (dict(zip(keys, (int(step), *row), strict=True)) for row in values)
    text = "".join(json.dumps(_named(row), ensure_ascii=False) + "\n" for row in rows)
    try:
        write_atomic(path, text)
    except OSError as error:
        warn(f"{path} is left out ({error.strerror})")
        path.with_name(path.name + ".tmp").unlink(missing_ok=True)
    return path


def _named(row: dict) -> dict:
    root = row["parent"] is None or row["parent"] < 0
    lineage = {"parent": None, "branch_at": None} if root else {}
    z = None if not row["z"] or None in row["z"] else row["z"]
    code = None if z is None or row["code"] is None or row["code"] < 0 else row["code"]
    return {**row, **lineage, "z": z, "code": code, "finish": FINISH_NAMES[row["finish"]]}


def log_columns(
    graded: Graded,
    sampled: Sampled,
    scored: Scored,
    *,
    scores: bool,
    codes: bool = False,
    logprobs: bool = False,
    entropies: bool = False,
    left: bool = False,
    root_codes: tuple[int, int] | None = None,
) -> tuple[dict, dict]:
    """(columns that the host has, columns still on the device) of the rollout log.

    Args:
        graded, sampled, scored: of the step.
        scores: there is an S_IB.
        codes: z stands for a code (latent.kind).
        logprobs, entropies: with the log-probs before truncation, and the entropies, of all tokens.
        left: with Forest.left_R.
        root_codes: trees of a prompt and token of code 0: with the codes that they grew under; None = they did not.
    """
    forest, texts, rewards = sampled.forest, graded.texts, graded.rewards
    problems = [problem for problem in graded.problems for _ in range(forest.group_size)]
    host = {
        "prompt_id": [problem.id for problem in problems],
        "question": [problem.question for problem in problems],
        "gold": [problem.answer for problem in problems],
        "trajectory": list(range(len(texts))),
        "text": texts,
        "tokens": response_tokens(forest, stop=True),
        "reward": rewards,
        "correct": rewards >= CORRECT,
    }
    if logprobs:
        host[LOGPROBS] = by_token(forest.raw_logp_RT, forest)
    if entropies:
        host[ENTROPIES] = by_token(forest.entropy_RT, forest)
    device = {
        "parent": forest.parent_R,
        "branch_at": forest.branch_at_R,
        "entropy_mean": _own_entropy(forest),
        "kept": scored.kept_R,
        "advantage": scored.advantage_R,
        "finish": forest.finish_R,
    } | ({LEFT: forest.left_R} if left else {})
    if root_codes is not None:
        device[ROOT_CODE] = _root_code(forest, *root_codes)
    optional = {name: x_R for name, x_R in sampled.columns.items() if name in (*ROLLOUT_KEYS, PROXY)}
    optional |= {"ib_score": scored.score_R} if scores else {}
    if forest.z_RZ.shape[1]:
        optional["z"], code_R = _steered(forest)
        optional |= {"code": code_R} if codes else {}
    missing = {"ib_answer", "ib_prompt", "ib_score", "z", "code"} - set(optional)
    return host | dict.fromkeys(missing, [None] * len(texts)), device | optional


@functools.partial(jax.jit, static_argnums=(1, 2))
def _root_code(forest: Forest, trees: int, first: int):
    return forest.code_R(trees) - first


@jax.jit
def _own_entropy(forest: Forest):
    return masked.mean(forest.entropy_RT, forest.own_RT, axis=1)


@jax.jit
def _steered(forest: Forest):
    """z [R,Z], NaN where there is none, and the code [R] that it stands for if it does, -1 where there is none.

    A code's entry of its z is positive and the others are not (model/steering/codes.py).
    """
    steered_R = (forest.parent_R >= 0) & ~forest.fallback_R & (forest.length_R > 0)
    return jnp.where(steered_R[:, None], forest.z_RZ, jnp.nan), jnp.where(steered_R, forest.z_RZ.argmax(1), -1)
