"""Rows and a Batch in which every field is set, and the responses have different lengths."""

import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.objectives import Batch, Rows

MAX_TOKENS = 10
INTEGERS = ("tokens_RC", "prompt_len_R", "group_R", "length_R", "trajectory_R", "parent_R", "branch_at_R")


def rows_of(reward_R, group_R, *, t=1, **fields) -> Rows:
    """Rows with these rewards and groups; whatever is not said is a root of t tokens that is kept."""
    r = len(reward_R)
    values = {
        "tokens_RC": np.ones((r, 1 + t)),
        "prompt_len_R": np.ones(r),
        "length_R": np.full(r, t),
        "mask_RT": np.ones((r, t)),
        "own_mask_RT": np.ones((r, t)),
        "raw_logp_RT": np.zeros((r, t)),
        "reward_R": reward_R,
        "correct_R": np.asarray(reward_R) > 0.999,
        "group_R": group_R,
        "trajectory_R": np.arange(r),
        "parent_R": np.full(r, -1),
        "branch_at_R": np.zeros(r),
        "keep_R": np.ones(r),
        "ib_score_R": np.zeros(r),
        "advantage_R": np.zeros(r),
    } | fields
    extras = {k: jnp.asarray(v, jnp.float32) for k, v in values.pop("extras", {}).items()}
    arrays = {k: jnp.asarray(v, jnp.int32 if k in INTEGERS else jnp.float32) for k, v in values.items()}
    return Rows(**arrays, extras=extras)


def random_batch(seed=0, lengths=(4, 2, 5, 1), **fields) -> Batch:
    """A Batch of random numbers; `fields` are those of the Batch or of its rows."""
    rng = np.random.default_rng(seed)
    r, t = len(lengths), max(lengths)
    mask = (np.arange(t) < np.array(lengths)[:, None]).astype(np.float32)
    logp = rng.uniform(-3, 0, (r, t)).astype(np.float32)
    policy = {
        "logp_RT": logp,
        "entropy_RT": rng.uniform(0, 2, (r, t)),
        "old_logp_RT": logp + rng.normal(0, 0.4, (r, t)),
        "importance_RT": np.ones((r, t)),
    }
    rows = {
        "raw_logp_RT": logp + rng.normal(0, 0.4, (r, t)),
        "ref_logp_RT": logp + rng.normal(0, 0.4, (r, t)),
        "mask_RT": mask,
        "own_mask_RT": mask,
        "length_R": np.array(lengths),
        "advantage_R": rng.normal(size=r),
    }
    reward_R = rng.normal(size=r)
    for name, value in fields.items():
        (policy if name in policy else rows)[name] = value
    group_R = rows.pop("group_R", np.arange(r) // 2)
    made = rows_of(rows.pop("reward_R", reward_R), group_R, t=t, **rows)
    return Batch(rows=made, **{k: jnp.asarray(v, jnp.float32) for k, v in policy.items()})


@pytest.fixture(scope="session")
def make_batch():
    return random_batch


@pytest.fixture(scope="session")
def make_rows():
    return rows_of
