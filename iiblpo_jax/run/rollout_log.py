"""The rollout log: every trajectory of a step as a line of JSON."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from iiblpo_jax.common import masked
from iiblpo_jax.common.errors import warn
from iiblpo_jax.common.jsonl import plain, write_atomic
from iiblpo_jax.data.prompts import PromptBatch
from iiblpo_jax.rewards.scorer import CORRECT
from iiblpo_jax.rollout.forest import FINISH_NAMES, Forest, response_logprobs, response_tokens
from iiblpo_jax.step.programs import Sampled
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
)
LOGPROBS = "logp"  # one more key with log.logprobs


def write_rollouts(workdir: Path, step: int, columns: Mapping[str, Sequence]) -> Path:
    """Writes the trajectories of a step, one a line, to `WORKDIR/rollouts/step_NNNNNN.jsonl`; a full disk is a warning.

    Args:
        workdir: of the run.
        step: goes into every line.
        columns: ROLLOUT_KEYS but `step`, and LOGPROBS where they are wanted -> R values, as lists or arrays.
            `tokens` holds whole responses as lists, `logp` as many numbers; `parent` is negative for roots, whose
            `branch_at` is then written as null too; `finish` is the code of the Forest; None or NaN (no such score)
            becomes null.

    Raises:
        ValueError: keys are missing or unknown, or columns differ in length.
    """
    keys = (*ROLLOUT_KEYS, LOGPROBS) if LOGPROBS in columns else ROLLOUT_KEYS
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
    return {**row, **lineage, "finish": FINISH_NAMES[row["finish"]]}


def log_columns(
    batch: PromptBatch,
    sampled: Sampled,
    texts: list[str],
    rewards: np.ndarray,
    scored: Scored,
    *,
    scores: bool,
    logprobs: bool = False,
) -> tuple[dict, dict]:
    """(columns that the host has, columns still on the device) of the rollout log.

    Args:
        batch, sampled, texts, rewards, scored: of the step.
        scores: there is an S_IB.
        logprobs: with the temperature-only log-probs of all tokens.
    """
    forest = sampled.forest
    host = {
        "prompt_id": [problem.id for problem in batch.problems for _ in range(forest.group_size)],
        "trajectory": list(range(len(texts))),
        "text": texts,
        "tokens": response_tokens(forest, stop=True),
        "reward": rewards,
        "correct": rewards >= CORRECT,
    }
    if logprobs:
        host[LOGPROBS] = response_logprobs(forest)
    device = {
        "parent": forest.parent_R,
        "branch_at": forest.branch_at_R,
        "entropy_mean": _own_entropy(forest),
        "kept": scored.kept_R,
        "advantage": scored.advantage_R,
        "finish": forest.finish_R,
    }
    optional = {name: x_R for name, x_R in sampled.columns.items() if name in ROLLOUT_KEYS}
    optional |= {"ib_score": scored.score_R} if scores else {}
    missing = {"ib_answer", "ib_prompt", "ib_score"} - set(optional)
    return host | dict.fromkeys(missing, [None] * len(texts)), device | optional


@jax.jit
def _own_entropy(forest: Forest):
    return masked.mean(forest.entropy_RT, forest.own_RT, axis=1)
