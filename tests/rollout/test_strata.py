"""Branches without replacement: masses against a recursion, and sums over everything that can happen against the truth.

A policy of responses of three tokens out of three, with a reward for each of the 27. Trees are grown at given points in
every way there is, each with its probability: the weighed sum over a tree must have the policy's mean and gradient.
"""

import itertools
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.common.trees import tree_shape
from iiblpo_jax.rollout.strata import masses, weights

RNG = np.random.default_rng(0)
LOGITS = {prefix: RNG.normal(size=3) for n in range(3) for prefix in itertools.product(range(3), repeat=n)}
POLICY = {prefix: np.exp(x) / np.exp(x).sum() for prefix, x in LOGITS.items()}
REWARD = RNG.random((3, 3, 3))
PREFIXES = list(POLICY)

PLANS = {  # (shape, t* of every trajectory)
    "one branch": (tree_shape(1, 1), (0, 1)),
    "two at one point": (tree_shape(2, 1), (0, 1, 1)),
    "two at two points": (tree_shape(2, 1), (0, 2, 1)),
    "two from the start": (tree_shape(2, 1), (0, 0, 0)),
    "a branch on a branch": (tree_shape(1, 2), (0, 1, 2)),
    "two on two": (tree_shape(2, 2), (0, 1, 2, 2, 1, 2, 2)),
}


def grow(plan, first: tuple[int, ...] = ()) -> Iterator[tuple[float, list[tuple], list[float]]]:
    """(probability, responses, left) of every tree of a plan, trajectory by trajectory."""
    shape, at = plan

    def more(p, responses, left):
        j = len(responses)
        if j == len(at):
            yield p, responses, left
            return
        parent = shape.parent_J[j]
        prefix = () if parent < 0 else responses[parent][: at[j]]
        taken = set()
        if parent >= 0:
            before = [parent, *(i for i in range(j) if shape.parent_J[i] == parent and at[i] == at[j])]
            taken = {responses[i][at[j]] for i in before}
        remains = 1.0 - sum(POLICY[prefix][v] for v in taken)
        for response in itertools.product(range(3), repeat=3):
            if response[: at[j]] == prefix and response[at[j]] not in taken:
                q = np.prod([POLICY[response[:t]][response[t]] for t in range(at[j], 3)]) / remains
                yield from more(p * q, [*responses, response], [*left, remains])

    yield from more(1.0, [], [])


def score(response) -> np.ndarray:
    """d log pi(response) / d logits of every prefix, [13*3]."""
    parts = []
    for prefix in PREFIXES:
        on_path = response[: len(prefix)] == prefix
        parts.append((np.eye(3)[response[len(prefix)]] - POLICY[prefix]) * on_path)
    return np.concatenate(parts)


RESPONSES = list(itertools.product(range(3), repeat=3))
PROBABILITY = np.array([np.prod([POLICY[r[:t]][r[t]] for t in range(3)]) for r in RESPONSES])
SCORES = {r: score(r) for r in RESPONSES}
MEAN = sum(p * REWARD[r] for p, r in zip(PROBABILITY, RESPONSES, strict=True))
GRADIENT = sum(p * REWARD[r] * SCORES[r] for p, r in zip(PROBABILITY, RESPONSES, strict=True))


def every_tree(name, limit=None):
    """Probabilities [N], responses and masses [N,J] of all trees of a plan."""
    shape, at = PLANS[name]
    found = list(itertools.islice(grow(PLANS[name]), limit))
    p_N, left_NJ = np.array([f[0] for f in found]), jnp.array([f[2] for f in found], jnp.float32)
    at_NJ = jnp.broadcast_to(jnp.array(at), left_NJ.shape)
    return p_N, [f[1] for f in found], np.asarray(masses(left_NJ, at_NJ, left_NJ >= 0, shape))


@pytest.mark.parametrize("name", [name for name in PLANS if name != "two on two"])
def test_mean_and_gradient_are_the_policys(name):
    p_N, responses, mass_NJ = every_tree(name)
    assert p_N.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(mass_NJ.sum(1), 1.0, atol=1e-5)
    mean, gradient = 0.0, np.zeros_like(GRADIENT)
    for p, rows, mass_J in zip(p_N, responses, mass_NJ, strict=True):
        for row, mass in zip(rows, mass_J, strict=True):
            mean += p * mass * REWARD[row]
            gradient += p * mass * REWARD[row] * SCORES[row]
    assert mean == pytest.approx(MEAN, abs=1e-5)
    np.testing.assert_allclose(gradient, GRADIENT, atol=1e-5)


def test_all_alike_is_another_policy():
    """What exploring without correcting is: far from the policy's mean."""
    p_N, responses, _ = every_tree("one branch")
    alike = sum(p * np.mean([REWARD[row] for row in rows]) for p, rows in zip(p_N, responses, strict=True))
    assert abs(alike - MEAN) > 0.01


def recursion(left, at, grown, shape) -> np.ndarray:
    """The masses of one tree by walking down it, node by node, the highest first."""
    mass = np.zeros(len(at))

    def walk(j, m):
        children = [i for i in range(len(at)) if shape.parent_J[i] == j and grown[i]]
        if j > 0:
            children = [i for i in children if at[i] != at[j]]
        for t in sorted({at[i] for i in children}):
            here = [i for i in children if at[i] == t]
            if left[here[0]] == 0:
                shares = [1 / (len(here) + 1)] * (len(here) + 1)
            else:
                rest = [1.0, *(left[i] for i in here), 0.0]
                shares = [a - b for a, b in itertools.pairwise(rest)]
            for i, share in zip(here, shares[1:], strict=True):
                walk(i, m * share)
            m *= shares[0]
        mass[j] = m

    walk(0, 1.0)
    return mass


@pytest.mark.parametrize("k, depth", [(1, 1), (3, 1), (4, 1), (1, 3), (2, 2), (2, 3)])
def test_masses_equal_a_walk_down_the_tree(k, depth):
    """Random trees: points that coincide, branches that were not grown, nodes that ran out of tokens."""
    shape, n = tree_shape(k, depth), 200
    j_count, rng = len(shape.parent_J), np.random.default_rng(1)
    at, left, grown = np.zeros((n, j_count), int), np.ones((n, j_count), np.float32), np.ones((n, j_count), bool)
    for row in range(n):
        for j in range(1, j_count):
            parent, elder = shape.parent_J[j], [i for i in range(j) if shape.parent_J[i] == shape.parent_J[j]]
            at[row, j] = rng.integers(at[row, parent], at[row, elder[-1]] + 1 if elder else at[row, parent] + 4)
            same = [i for i in elder if at[row, i] == at[row, j]]
            above = left[row, same[-1]] if same else 1.0
            left[row, j] = above * rng.choice([0.0, 0.3, rng.random()], p=[0.2, 0.2, 0.6])
            grown[row, j] = grown[row, parent] & (rng.random() < 0.9) and all(grown[row, i] for i in same)
    found = np.asarray(masses(jnp.array(left), jnp.array(at), jnp.array(grown), shape))
    wanted = [recursion(left[row], at[row], grown[row], shape) for row in range(n)]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(found.sum(1), 1.0, atol=1e-5)


def test_the_power_lies_between_all_alike_and_what_they_stand_for():
    mass, grown = jnp.array([[0.9, 0.1], [1.0, 0.0]]), jnp.array([[True, True], [True, False]])
    np.testing.assert_allclose(weights(mass, grown, power=1.0), 2 * mass, rtol=1e-6)
    np.testing.assert_allclose(weights(mass, grown, power=0.0), [[1, 1], [2, 0]])
    np.testing.assert_allclose(weights(mass, grown, power=0.5)[0], [1.5, 0.5], rtol=1e-5)
