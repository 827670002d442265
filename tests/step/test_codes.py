"""Codes that roots are drawn under: who has which, what the policy sees of them, what a response says of its own."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.bottleneck import Reading
from iiblpo_jax.bottleneck.dependence import dependence_bonus
from iiblpo_jax.model.decoder import bind, logits
from iiblpo_jax.model.steering.code_tokens import code_tokens, coded_config, with_codes, without_codes
from iiblpo_jax.objectives import make_objective
from iiblpo_jax.rollout.branching import Branching
from iiblpo_jax.rollout.draws import in_order, shared_out
from iiblpo_jax.rollout.engine import rollout
from iiblpo_jax.rollout.publication import PublicationSpec, publish
from iiblpo_jax.rollout.spec import RolloutSpec
from iiblpo_jax.step.inform import Dependence, InformSpec, inform
from iiblpo_jax.step.score import BottleneckSpec, CodesSpec, CreditSpec, FilterSpec, ScoreSpec, StrataSpec, score

PROMPT_PS, LENGTH_P = np.array([[5, 9, 4], [7, 4, 0], [4, 0, 0]], np.int32), np.array([3, 2, 1], np.int32)
END, N, ROOTS, T = 4, 4, 6, 6
TREES = Branching(k=1, min_suffix=1, replace=False)
G = ROOTS * TREES.tree_size
NEVER = (23, 24, 25, 26)  # the codes themselves


@pytest.fixture(scope="module")
def coded(tiny_config, tiny_params):
    """(architecture, weights) with four codes that are far from alike."""
    model = with_codes(bind(tiny_config, tiny_params), N, end=END, noise=1.5)
    return model.config, {**tiny_params, "embed": model.embed[...]}


@pytest.fixture(scope="module")
def forest(coded):
    config, params = coded
    spec = RolloutSpec(
        model=config, roots=ROOTS, branching=TREES, slots=5, max_tokens=T, stop_ids=(0, 1), never_ids=NEVER,
        codes=code_tokens(config, N),
    )  # fmt: skip
    published = publish(params, spec=PublicationSpec(model=config))
    return rollout(published, PROMPT_PS, LENGTH_P, jax.random.key(2), spec=spec)[0]


def rows_of(forest, tokens_R):
    """Prompt and response of every trajectory, with a token in place of the prompt's last one; made by hand."""
    rows = np.zeros((3 * G, PROMPT_PS.shape[1] + T), np.int32)
    for r, row in enumerate(rows):
        n, length = LENGTH_P[r // G], int(forest.length_R[r])
        row[: n + length] = [*PROMPT_PS[r // G, : n - 1], tokens_R[r], *np.asarray(forest.tokens_RT[r, :length])]
    return rows


def log_probs(coded, rows):
    """log-softmax [R,C,V] over all tokens but the codes."""
    config, params = coded
    x = np.array(jax.jit(lambda rows: logits(bind(config, params), rows))(rows), np.float64)
    x[..., list(NEVER)] = -np.inf
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def response_log_probs(coded, forest, tokens_R):
    """[R,T] log-probs of the responses under these codes, zeros behind their ends."""
    logp_RCV = log_probs(coded, rows_of(forest, tokens_R))
    found = np.zeros((3 * G, T))
    for r, t in itertools.product(range(3 * G), range(T)):
        if t < forest.length_R[r]:
            found[r, t] = logp_RCV[r, LENGTH_P[r // G] - 1 + t, forest.tokens_RT[r, t]]
    return found


def test_codes_are_shared_out():
    codes_PN = np.asarray(shared_out(in_order(jax.random.key(0), 600, 5), N))
    np.testing.assert_array_equal(np.sort(codes_PN, 1), np.tile(np.arange(N), (600, 1)))
    share_NN = np.stack([(codes_PN == code).mean(0) for code in range(N)])  # every tree's code is uniform
    np.testing.assert_allclose(share_NN, 1 / N, atol=4 * np.sqrt(3 / 16 / 600))
    assert len({tuple(row) for row in codes_PN}) == 24


def test_trees_take_the_codes_in_turn_and_branches_those_of_their_root(forest):
    assert not np.isin(forest.tokens_RT, NEVER).any()
    code_PMJ = np.asarray(forest.code_R(ROOTS)).reshape(3, ROOTS, 2) - 23
    np.testing.assert_array_equal(code_PMJ[..., 0], code_PMJ[..., 1])
    for order_N, code_MJ in zip(np.asarray(forest.codes_PN) - 23, code_PMJ, strict=True):
        np.testing.assert_array_equal(code_MJ[:, 0], [*order_N, *order_N[:2]])


def test_a_rollout_draws_from_the_model_with_the_code_in_the_prompt(coded, forest):
    """And a branch without replacement has its root's distribution: for it is left 1 - p of the root's token."""
    code_R = np.asarray(forest.code_R(ROOTS))
    expected_RT = response_log_probs(coded, forest, code_R)
    np.testing.assert_allclose(forest.raw_logp_RT, expected_RT, atol=1e-4)
    other_RT = response_log_probs(coded, forest, 23 + (code_R - 22) % N)
    assert np.abs(other_RT - expected_RT).max() > 0.1  # the codes matter
    for r in range(1, 3 * G, 2):
        if forest.length_R[r]:
            root_p = np.exp(expected_RT[r - 1, forest.branch_at_R[r]])
            assert float(forest.left_R[r]) == pytest.approx(1 - root_p, abs=1e-4)


def informed(coded, forest, others, pack_tokens=256):
    config, params = coded
    reading = Reading(never_ids=NEVER, pack_tokens=pack_tokens)
    reader = Dependence(model=config, reading=reading, trees=ROOTS, others=others)
    return inform({"policy": params}, forest, None, spec=InformSpec(readers=(("policy", reader),)))["dependence"]


@pytest.mark.parametrize("others", [3, 1])
def test_what_a_response_says_of_its_code_is_a_sum_over_codes(coded, forest, others):
    codes_PN = np.asarray(forest.codes_PN)
    nth_R = np.arange(3 * G) % G // 2
    total_ZR = np.stack([
        response_log_probs(coded, forest, codes_PN[np.arange(3 * G) // G, (nth_R + ahead) % N]).sum(1)
        for ahead in range(1 + others)
    ])  # fmt: skip
    b_R = total_ZR[0] - np.log(np.exp(total_ZR).mean(0))
    assert b_R.max() > 0.1
    np.testing.assert_allclose(informed(coded, forest, others), b_R * (np.asarray(forest.length_R) > 0), atol=1e-4)


def test_observations_say_nothing_of_a_code(coded, forest):
    """What is said between turns is left out of the sum: of the fourth to the last token here."""
    turns = forest.replace(turn_RT=jnp.where(jnp.arange(T) >= 3, -1, 0) * jnp.ones((3 * G, 1), jnp.int32))
    codes_PN, nth_R = np.asarray(forest.codes_PN), np.arange(3 * G) % G // 2
    total_ZR = np.stack([
        response_log_probs(coded, forest, codes_PN[np.arange(3 * G) // G, (nth_R + ahead) % N])[:, :3].sum(1)
        for ahead in range(2)
    ])  # fmt: skip
    b_R = total_ZR[0] - np.log(np.exp(total_ZR).mean(0))
    np.testing.assert_allclose(informed(coded, turns, 1), b_R * (np.asarray(forest.length_R) > 0), atol=1e-4)


def test_codes_that_are_one_to_the_model_are_told_by_nothing(coded, forest, tiny_config, tiny_params):
    model = with_codes(bind(tiny_config, tiny_params), N, end=END, noise=0.0)
    alike = coded[0], {**tiny_params, "embed": model.embed[...]}
    np.testing.assert_array_equal(informed(alike, forest, 3), 0.0)


# -- what is paid -----------------------------------------------------------------------------------------------------

REWARD_R = jnp.asarray(np.arange(3 * G) % 3 == 0, jnp.float32)
B_R = jnp.asarray(np.random.default_rng(3).normal(0, 1, 3 * G), jnp.float32)


def scored(forest, codes, columns=None, *, weighed=False):
    strata = StrataSpec(shape=TREES.shape, power=1.0) if weighed else None
    spec = ScoreSpec(
        bottleneck=BottleneckSpec(),
        filter=FilterSpec(rule="none", keep=G),
        credit=CreditSpec(objective=make_objective("grpo", max_tokens=T), weight="surprise", power=0.5, strata=strata),
        codes=codes,
    )
    return score(forest, REWARD_R, columns or {}, jax.random.key(0), jnp.int32(0), spec=spec)


def test_unpaid_codes_change_the_prompts_alone(forest):
    """What else there is of a row is that of a plain one, to the bit."""
    plain = scored(forest, None)
    coded = scored(forest, CodesSpec(trees=ROOTS, most=1.4), {"dependence": B_R})
    np.testing.assert_array_equal(coded.rows.tokens_RC, rows_of(forest, np.asarray(forest.code_R(ROOTS))))
    same = coded.rows.replace(tokens_RC=plain.rows.tokens_RC)
    jax.tree.map(np.testing.assert_array_equal, same, plain.rows)
    roots = np.arange(0, 3 * G, 2)
    assert float(coded.metrics["latent/information"]) == pytest.approx(np.asarray(B_R)[roots].mean(), abs=1e-6)


@pytest.mark.parametrize("weighed", [False, True])
def test_right_answers_are_paid_for_telling_their_code(forest, weighed):
    spec, columns = CodesSpec(trees=ROOTS, most=0.8), {"dependence": B_R}
    before = np.asarray(scored(forest, spec, columns, weighed=weighed).rows.advantage_R)
    paid = dataclasses.replace(spec, dependence=0.5)
    after = np.asarray(scored(forest, paid, columns, weighed=weighed).rows.advantage_R)
    cut, w = np.clip(np.asarray(B_R), -0.8, 0.8), np.ones(3 * G)
    if weighed:  # a tree's masses are 1 - left and left, of mean 1
        left = np.asarray(forest.left_R).reshape(-1, 2)[:, 1]
        left = np.where(np.asarray(forest.length_R).reshape(-1, 2)[:, 1] > 0, left, 0.0)
        w = 2 * np.stack([1 - left, left], 1).ravel()
    right = (np.asarray(REWARD_R) > 0) & (np.asarray(forest.length_R) > 0)
    mean = (w * cut)[right].sum() / w[right].sum()
    np.testing.assert_allclose(after - before, 0.5 * w * (cut - mean) * right, atol=1e-5)


def test_a_bonus_by_hand():
    found = dependence_bonus(jnp.array([2.0, 0.5, -3.0, 0.1]), jnp.array([True, True, True, False]), most=1.0)
    np.testing.assert_allclose(found, [1 - 1 / 6, 0.5 - 1 / 6, -1 - 1 / 6, 0.0], rtol=1e-6)


def test_a_code_begins_near_the_token_that_it_replaces(tiny_config, tiny_params):
    plain = bind(tiny_config, tiny_params)
    assert with_codes(plain, 0, end=None, noise=0.3) is plain
    rows_ND = np.asarray(with_codes(plain, 3, end=END, noise=0.3).embed[...])[-3:]
    embed_D = np.asarray(tiny_params["embed"])[END]
    np.testing.assert_allclose(np.linalg.norm(rows_ND - embed_D, axis=1), 0.3 * np.linalg.norm(embed_D), rtol=1e-5)
    even = dataclasses.replace(tiny_config, vocab_size=96)
    assert code_tokens(tiny_config, 0) is None
    model = with_codes(plain, 3, end=None, noise=0.3)
    assert model.config.vocab_size == 26 and not model.embed[...][-3:].any()
    params = {**tiny_params, "embed": model.embed[...]}
    jax.tree.map(np.testing.assert_array_equal, without_codes(params, tiny_config), tiny_params)
    assert coded_config(even, 3).vocab_size == 128  # still a multiple of 32
