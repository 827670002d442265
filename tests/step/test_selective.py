"""Where only wrong roots have a branch: the expected gradient, exactly, over everything that can happen.

A policy of two tokens a response, h and then c, each 0 or 1. Two roots a prompt; behind a root there may be a branch
that keeps h and draws c again. Every outcome of a group is one prompt of a Forest, weighed with its probability.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.objectives import make_objective
from iiblpo_jax.rollout.forest import STOP, Forest
from iiblpo_jax.step.score import BottleneckSpec, CreditSpec, FilterSpec, ScoreSpec, score

FIRST = np.array([0.3, 0.7])  # pi(h)
RIGHT = np.array([0.9, 0.2])  # pi(c = 0 | h): an answer is right where c = 0
SECOND = np.stack([RIGHT, 1 - RIGHT], 1)
VALUE = RIGHT
MEAN = float(FIRST @ VALUE)
ROOTS = 2


def trees() -> list[tuple[float, tuple[int, int], int | None]]:
    """(probability, root, c of its branch); only wrong roots have one."""
    found = []
    for h, c in itertools.product((0, 1), repeat=2):
        p = FIRST[h] * SECOND[h, c]
        found += [(p, (h, c), None)] if c == 0 else [(p * SECOND[h, b], (h, c), b) for b in (0, 1)]
    return found


GROUPS = list(itertools.product(trees(), repeat=ROOTS))
PROBABILITY_P = np.array([np.prod([tree[0] for tree in group]) for group in GROUPS])


def all_groups() -> Forest:
    """Every outcome of a group: rows root, branch, root, branch; a branch that was not grown has length 0."""
    tokens, length = [], []
    for (h, c), b in (tree[1:] for group in GROUPS for tree in group):
        tokens += [[h, c], [h, b or 0]]
        length += [2, 0 if b is None else 2]
    r, p = len(tokens), len(GROUPS)
    within = np.arange(r) % 2  # 0 = root
    zeros = np.zeros((r, 2), np.float32)
    fields = {
        "prompt_PS": np.ones((p, 1), np.int32),
        "prompt_len_P": np.ones(p, np.int32),
        "tokens_RT": np.array(tokens, np.int32),
        "raw_logp_RT": zeros,
        "entropy_RT": zeros,
        "length_R": np.array(length, np.int32),
        "finish_R": np.full(r, STOP, np.int32),
        "parent_R": np.where(within, np.arange(r) - 1, -1).astype(np.int32),
        "branch_at_R": within.astype(np.int32),
        "z_RZ": np.zeros((r, 0), np.float32),
        "fallback_R": np.zeros(r, bool),
        "left_R": np.ones(r, np.float32),
    }
    return Forest(**{name: jnp.asarray(x) for name, x in fields.items()})


FOREST = all_groups()


def scored(method, *, selective, weight="none"):
    spec = ScoreSpec(
        bottleneck=BottleneckSpec(),
        filter=FilterSpec(rule="none", keep=2 * ROOTS),
        credit=CreditSpec(objective=make_objective(method, max_tokens=2), selective=selective, weight=weight),
    )
    right_R = ((FOREST.tokens_RT[:, 1] == 0) & (FOREST.length_R > 0)).astype(jnp.float32)
    return score(FOREST, right_R, {}, jax.random.key(0), jnp.int32(0), spec=spec)


def gradient(method, *, selective, inherited=False):
    """Expected sum of A grad log pi, over the true gradient: of the logit of h = 0, and of c = 0 behind h = 0 and 1."""
    tokens_RT, own_RT = np.asarray(FOREST.tokens_RT), np.asarray(FOREST.own_RT)
    weight_R = np.repeat(PROBABILITY_P, 2 * ROOTS) * np.asarray(scored(method, selective=selective).advantage_R)
    h_R, c_R = tokens_RT.T
    counts_R = own_RT[:, 0] | inherited
    first = (weight_R * counts_R * ((h_R == 0) - FIRST[0])).sum()
    second = [(weight_R * own_RT[:, 1] * (h_R == h) * ((c_R == 0) - RIGHT[h])).sum() for h in (0, 1)]
    truth = [FIRST[0] * (VALUE[0] - MEAN), *(FIRST * RIGHT * (1 - VALUE))]
    return np.array([first, *second]) / truth


def test_every_outcome_is_there():
    assert PROBABILITY_P.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(("method", "root"), [("dr_grpo", (ROOTS - 1) / ROOTS), ("rloo", 1.0)])
def test_the_gradient_is_that_of_the_roots_plus_that_of_going_on_from_wrong_ones(method, root):
    """Of h it is that of `ROOTS` roots; of c behind h a branch adds one more sample for every root that is wrong there.

    A mean of roots holds its own member, which takes 1 / ROOTS of the gradient of centred rewards; leave-one-out does
    not. No branch is in the mean, so it loses nothing of theirs.
    """
    wanted = ROOTS * np.array([root, *(root + 1 - VALUE)])
    np.testing.assert_allclose(gradient(method, selective=True), wanted, rtol=1e-4)


def test_a_mean_over_branches_too_would_be_biased():
    """Then the gradient of h depends on what it leads to, not on the number of samples alone; worse with its copies."""
    found = gradient("dr_grpo", selective=False)
    assert abs(found[0] - ROOTS * (ROOTS - 1) / ROOTS) > 0.05
    inherited = gradient("dr_grpo", selective=False, inherited=True)
    assert abs(inherited[0] - found[0]) > 0.05


def test_a_prompt_is_weighed_by_its_roots():
    """Bits of the share of right roots, none or half of two; where both are right there is nothing to weigh."""
    plain, weighed = (scored("dr_grpo", selective=True, weight=w).advantage_R for w in ("none", "surprise"))
    for group, before, after in zip(GROUPS, plain.reshape(-1, 4), weighed.reshape(-1, 4), strict=True):
        right = sum(c == 0 for _, (_, c), _ in group)
        np.testing.assert_allclose(after, before * {0: 2.0, 1: 1.0, 2: 0.0}[right], atol=1e-6)
