"""i-MENTOR's bonus by hand, and its networks against loops in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.objectives import advantages, make_objective
from iiblpo_jax.objectives.novelty import errors, learnt, make_novelty

REWARD = np.array([1.0, 0, 0.5, 0, 0, 0, 0, 0])  # a mixed group, and one where all are wrong
GROUP = np.repeat([0, 1], 4)
KEEP = np.array([1, 1, 1, 1, 1, 0, 1, 1])
ERROR = np.array([0.9, 0.1, 0.3, 0.2, 0.5, 5.0, 0.4, 0.1])
C, V = 7, 11
LENGTH = jnp.array([3, 7, 1, 5])
TOKENS = jax.random.randint(jax.random.key(1), (4, C), 0, V)


@pytest.fixture
def rows(make_rows):
    return make_rows(REWARD, GROUP, keep_R=KEEP, extras={"novelty": ERROR})


@pytest.fixture(scope="module")
def novelty():
    return make_novelty(jax.random.key(0), vocab_size=V, width=C)


@pytest.mark.parametrize(("step", "options"), [(None, {}), (0, {}), (40, {"bonus": 2.0}), (30, {"decay": 10.0})])
def test_the_bonus_by_hand(rows, step, options):
    bonus, decay = options.get("bonus", 0.5), options.get("decay", 40.0)
    b = bonus * (ERROR - 0.1) / (0.9 - 0.1) * decay / (decay + (step or 0))
    plain = np.asarray(advantages(make_objective("grpo", max_tokens=10), rows))
    expected = np.where(KEEP > 0, plain + np.where(REWARD < 1, b, 0.0), 0.0)
    found = advantages(make_objective("imentor", max_tokens=10, overrides=options), rows, step=step)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert not plain[4:].any() and found[4] > found[6] > 0  # from wrong answers alone


def test_where_nothing_is_newer_than_anything_else_there_is_no_bonus(rows):
    alike = rows.replace(extras={"novelty": jnp.full(8, 0.3)})
    found, plain = (advantages(make_objective(name, max_tokens=10), alike) for name in ("imentor", "grpo"))
    np.testing.assert_array_equal(found, plain)


def test_without_a_bonus_it_is_grpo_to_the_bit_and_asks_for_nothing(rows):
    off = make_objective("imentor", max_tokens=10, overrides={"bonus": 0.0})
    np.testing.assert_array_equal(advantages(off, rows), advantages(make_objective("grpo", max_tokens=10), rows))
    assert off.needs == () and make_objective("imentor", max_tokens=10).needs == ("novelty",)


def by_hand(weights, embed, tokens):
    x = np.zeros(16)
    for c, token in enumerate(tokens):
        x += embed[token] @ weights["w0_CEH"][c] / np.sqrt(16 * len(tokens))
    for name in ("w1_HH", "w2_HH"):
        x = np.where(x > 0, x, 0.01 * x) @ weights[name]
    return 1 / (1 + np.exp(-x[0]))


def test_errors_by_hand(novelty):
    f, g, embed = (jax.tree.map(np.float64, x) for x in (novelty.predictor, novelty.target, novelty.embed_VE))
    whole = [np.asarray(TOKENS[r, : LENGTH[r]]) for r in range(4)]
    expected = [(by_hand(f, embed, x) - by_hand(g, embed, x)) ** 2 for x in whole]
    np.testing.assert_allclose(errors(novelty, TOKENS, LENGTH), expected, rtol=1e-4, atol=1e-7)
    assert min(expected) > 0


def test_what_lies_behind_a_sequence_does_not_matter(novelty):
    other = jnp.where(jnp.arange(C) < LENGTH[:, None], TOKENS, 3)
    np.testing.assert_array_equal(errors(novelty, TOKENS, LENGTH), errors(novelty, other, LENGTH))


def test_what_is_seen_again_and_again_is_no_longer_new(novelty):
    """What is not, stays: row 1 counts in no mean. And g and the embeddings never move."""
    counted = jnp.array([1, 0, 1, 1], bool)
    step = jax.jit(lambda n: learnt(n, TOKENS, LENGTH, counted))
    after = novelty
    for _ in range(200):
        after = step(after)
    before_R, after_R = errors(novelty, TOKENS, LENGTH), errors(after, TOKENS, LENGTH)
    assert (after_R < 0.1 * before_R)[counted].all()
    frozen, still = ((n.target, n.embed_VE) for n in (novelty, after))
    jax.tree.map(np.testing.assert_array_equal, frozen, still)


def test_rows_that_do_not_count_teach_nothing(novelty):
    after = learnt(novelty, TOKENS, LENGTH, jnp.zeros(4, bool))
    jax.tree.map(np.testing.assert_array_equal, after, novelty)
    one = learnt(novelty, TOKENS, LENGTH, jnp.arange(4) == 2)
    other = learnt(novelty, TOKENS.at[0].set(5), LENGTH, jnp.arange(4) == 2)
    jax.tree.map(np.testing.assert_array_equal, one, other)
