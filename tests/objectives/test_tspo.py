import jax
import numpy as np
import pytest

from iiblpo_jax.environments.interface import SEEN
from iiblpo_jax.objectives import advantages, make_objective
from iiblpo_jax.objectives.rows import TURN

ALPHA, G, T = 0.5, 4, 12


@pytest.fixture(scope="module")
def rows(make_rows):
    """Three prompts of four responses: one all wrong, one all wrong that has seen nothing, one mixed."""
    rng = np.random.default_rng(0)
    turn_RT, mask_RT = np.zeros((3 * G, T), np.int32), np.zeros((3 * G, T), np.float32)
    for r in range(3 * G):
        at, k = 0, 0
        while at < T - 2 and k < 4:
            own, given = rng.integers(1, 3, 2)
            turn_RT[r, at : at + own] = k
            mask_RT[r, at : at + own] = 1
            turn_RT[r, at + own : at + own + given] = -(k + 1)
            at, k = at + own + given, k + 1
    correct_R = np.array([0] * 8 + [1, 0, 0, 1], np.float32)
    seen_R = np.array([1, -1, 0, 2, *[-1] * 4, 0, 1, -1, 2], np.float32)
    keep_R = np.ones(3 * G, bool)
    keep_R[3] = False
    return make_rows(
        correct_R,
        np.repeat(np.arange(3), G),
        t=T,
        mask_RT=mask_RT,
        own_mask_RT=mask_RT,
        keep_R=keep_R,
        extras={TURN: turn_RT, SEEN: seen_R},
    )


def by_loops(rows):
    """The formula of the module, token by token."""
    turn, seen, mask, correct, keep = (
        np.asarray(x) for x in (rows.extras[TURN], rows.extras[SEEN], rows.mask_RT, rows.correct_R, rows.keep_R)
    )
    found = np.zeros((3 * G, T))
    for i in range(3 * G):
        group = [j for j in range(i // G * G, i // G * G + G) if keep[j]]
        for t in range(T):
            if not mask[i, t] or not keep[i]:
                continue
            k = turn[i, t]
            among = [j for j in group if (mask[j] * (turn[j] == k)).any()]
            rewards = [ALPHA * (k <= seen[j]) for j in among]
            mine = ALPHA * (k <= seen[i])
            if any(correct[j] for j in group):
                rewards, mine = [correct[j] for j in group], correct[i]
            if len(set(rewards)) > 1:
                found[i, t] = (mine - np.mean(rewards)) / (np.std(rewards, ddof=1) + 1e-6)
    return found


def test_advantages_are_those_of_the_formula(rows):
    method = make_objective("tspo", max_tokens=T, overrides={"alpha": ALPHA})
    found = np.asarray(jax.jit(lambda o: advantages(method, o))(rows)) * np.asarray(rows.mask_RT)
    np.testing.assert_allclose(found, by_loops(rows), atol=1e-5)
    assert np.abs(found[:3]).max() > 0 and not found[G : 2 * G].any() and not found[3].any()
    assert len(np.unique(np.round(found[0][np.asarray(rows.mask_RT[0]) > 0], 4))) > 1  # turns differ


def test_groups_with_a_right_answer_have_grpos(rows):
    tspo, grpo = (advantages(make_objective(name, max_tokens=T), rows) for name in ("tspo", "grpo"))
    own_RT = np.asarray(rows.extras[TURN] >= 0)[2 * G :]
    wanted = np.broadcast_to(np.asarray(grpo)[2 * G :, None], own_RT.shape)
    np.testing.assert_array_equal(np.asarray(tspo)[2 * G :][own_RT], wanted[own_RT])
    assert not np.asarray(tspo)[2 * G :][~own_RT].any()
