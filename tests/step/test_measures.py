"""What is watched of branches, against a loop over them."""

import jax.numpy as jnp
import numpy as np

from iiblpo_jax.common.trees import tree_shape
from iiblpo_jax.rollout.forest import DONE, Forest
from iiblpo_jax.step.measures import branch_metrics, turn_metrics

P, T = 3, 4
PARENT_J = tree_shape(2, 2).parent_J
J = len(PARENT_J)
R = P * 2 * J  # two trees a prompt


def random_forest(seed: int) -> Forest:
    """Two words and up to four tokens, so that branches often say what their parents said; some were not grown."""
    rng = np.random.default_rng(seed)
    parent_R = np.array([-1 if up < 0 else r - r % J + up for r, up in zip(range(R), PARENT_J * (R // J), strict=True)])
    length_R, at_R, tokens_RT = rng.integers(1, T + 1, R), np.zeros(R, int), rng.integers(2, 4, (R, T))
    for r in np.flatnonzero(parent_R >= 0):
        parent = parent_R[r]
        if not length_R[parent] or rng.random() < 0.2:
            length_R[r] = 0
            continue
        at_R[r] = rng.integers(0, length_R[parent])
        tokens_RT[r, : at_R[r]] = tokens_RT[parent, : at_R[r]]
        length_R[r] = rng.integers(at_R[r] + 1, T + 1)
    tokens_RT *= np.arange(T) < length_R[:, None]
    return Forest(
        prompt_PS=jnp.ones((P, 1), int),
        prompt_len_P=jnp.ones(P, int),
        tokens_RT=jnp.asarray(tokens_RT),
        raw_logp_RT=jnp.zeros((R, T)),
        entropy_RT=jnp.zeros((R, T)),
        length_R=jnp.asarray(length_R),
        finish_R=jnp.ones(R, int),
        parent_R=jnp.asarray(parent_R),
        branch_at_R=jnp.asarray(at_R),
        z_RZ=jnp.zeros((R, 0)),
        fallback_R=jnp.asarray((parent_R >= 0) & (rng.random(R) < 0.3)),
        left_R=jnp.ones(R),
    )


def test_what_branches_change_is_what_a_loop_counts():
    for seed in range(5):
        forest, right = random_forest(seed), np.random.default_rng(seed + 100).integers(0, 2, R)
        said = [np.asarray(row)[:n].tolist() for row, n in zip(forest.tokens_RT, forest.length_R, strict=True)]
        same, copies, flips = [], [], []
        for r in range(R):
            parent, at = int(forest.parent_R[r]), int(forest.branch_at_R[r])
            if parent < 0 or not said[r]:
                continue
            copies.append(said[r] == said[parent])
            flips.append(right[r] != right[parent])
            if not forest.fallback_R[r]:
                same.append(said[r][at : at + 1] == said[parent][at : at + 1])
        found = branch_metrics(forest, jnp.asarray(right, jnp.float32))
        for name, counted in (("same_token", same), ("copies", copies), ("flips", flips)):
            assert 0 < np.mean(counted) < 1
            np.testing.assert_allclose(found[f"rollout/branch_{name}"], np.mean(counted), rtol=1e-6, err_msg=name)


def test_without_branches_they_are_0():
    forest = random_forest(0)
    roots = forest.replace(parent_R=jnp.full(R, -1))
    assert set(map(float, branch_metrics(roots, jnp.ones(R)).values())) == {0.0}


def test_what_came_of_turns_against_a_loop():
    rng = np.random.default_rng(1)
    forest = random_forest(1)
    turn_RT = np.stack([rng.permutation([0, -1, 1, -2])[:T] for _ in range(R)])
    finish_R = rng.integers(0, 3, R)
    forest = forest.replace(turn_RT=jnp.asarray(turn_RT), finish_R=jnp.asarray(finish_R))
    size, length_R = R // P, np.asarray(forest.length_R)
    correct_R, seen_R = np.zeros(R), rng.integers(-1, 3, R).astype(float)
    correct_R[:2] = 1
    seen_R[size : 2 * size] = 1  # a prompt that failed, and all saw the answer at once
    found = turn_metrics(forest, jnp.asarray(correct_R), jnp.asarray(seen_R))
    grown = [r for r in range(R) if length_R[r]]
    emitted = [turn_RT[r, t] for r in grown for t in range(length_R[r])]
    wanted = {
        "turns/answered": np.mean([max(abs(turn_RT[r, : length_R[r]])) for r in grown]),
        "turns/given": np.mean([turn < 0 for turn in emitted]),
        "turns/done": np.mean([finish_R[r] == DONE for r in grown]),
        "turns/near_miss": np.mean([seen_R[r] >= 0 and not correct_R[r] for r in grown]),
        "turns/all_wrong": 2 / 3,
        "turns/rescued": 1 / 2,
    }
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
    assert turn_metrics(forest, jnp.asarray(correct_R), None).keys() == set(list(wanted)[:3])
