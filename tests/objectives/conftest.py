"""A random Batch in which every field is set, and the responses have different lengths."""

import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.objectives import Batch

MAX_TOKENS = 10


def random_batch(seed=0, lengths=(4, 2, 5, 1), **fields) -> Batch:
    rng = np.random.default_rng(seed)
    r, t = len(lengths), max(lengths)
    mask = (np.arange(t) < np.array(lengths)[:, None]).astype(np.float32)
    logp = rng.uniform(-3, 0, (r, t)).astype(np.float32)
    values = {
        "logp_RT": logp,
        "entropy_RT": rng.uniform(0, 2, (r, t)),
        "old_logp_RT": logp + rng.normal(0, 0.4, (r, t)),
        "rollout_logp_RT": logp + rng.normal(0, 0.4, (r, t)),
        "ref_logp_RT": logp + rng.normal(0, 0.4, (r, t)),
        "mask_RT": mask,
        "own_mask_RT": mask,
        "z_on_RT": np.zeros((r, t)),
        "importance_RT": np.ones((r, t)),
        "advantage_RT": np.broadcast_to(rng.normal(size=(r, 1)), (r, t)),
        "reward_R": rng.normal(size=r),
        "group_R": np.arange(r) // 2,
        "length_R": np.array(lengths),
        "trajectory_R": np.arange(r),
        "parent_R": np.full(r, -1),
        "branch_at_R": np.zeros(r),
    } | fields
    integers = ("group_R", "length_R", "trajectory_R", "parent_R", "branch_at_R")
    return Batch(**{k: jnp.asarray(v, jnp.int32 if k in integers else jnp.float32) for k, v in values.items()})


@pytest.fixture
def make_batch():
    return random_batch
