"""Features against a slow loop over rows, one unpadded sequence at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.latents import features
from iiblpo_jax.latents.features import Continuation, extract, rows_of, split_by_prompt
from iiblpo_jax.model.decoder import bind, hidden_states, logits
from iiblpo_jax.rollout.branching import Branching

BRANCHING = Branching(fraction=0.2, min_suffix=2)
TEMPERATURE = 0.8


@pytest.fixture(scope="module")
def continuations():
    rng = np.random.default_rng(0)
    sizes = [(3, 12), (5, 2), (2, 20), (4, 9), (1, 5), (3, 1), (6, 16)]
    return [
        Continuation(i // 2, rng.integers(0, 23, p).tolist(), rng.integers(0, 23, t).tolist(), i % 2 == 0)
        for i, (p, t) in enumerate(sizes)
    ]


@pytest.fixture(scope="module")
def pairs(tiny_config, tiny_params, continuations):
    key = jax.random.key(3)
    return extract(tiny_config, tiny_params, rows_of(continuations), key, temperature=TEMPERATURE, branching=BRANCHING)


def entropies(config, params, c):
    """Entropy of the distribution that emitted each response token, from whole logits."""
    lg = logits(bind(config, params), jnp.array([c.prompt + c.response]))[0, len(c.prompt) - 1 : -1] / TEMPERATURE
    p = np.asarray(jax.nn.softmax(lg), np.float64)
    return -(p * np.log(p + 1e-30)).sum(-1)


def test_rows_are_contiguous_and_too_short_responses_are_dropped(continuations):
    rows = rows_of(continuations)
    usable = [c for c in continuations if len(c.response) > 1]
    assert rows.tokens_NC.shape == (6, 22) and rows.t == 20
    for n, c in enumerate(usable):
        whole = c.prompt + c.response
        assert rows.tokens_NC[n].tolist() == whole + [0] * (22 - len(whole))
        assert (rows.prompt_len_N[n], rows.length_N[n]) == (len(c.prompt), len(c.response))
        assert (rows.stopped_N[n], rows.prompt_id_N[n]) == (c.stopped, c.prompt_id)
    with pytest.raises(InputError, match="two tokens to cut between"):
        rows_of([Continuation(0, [1, 2], [3], True)])


def test_context_and_target_equal_a_slow_loop(tiny_config, tiny_params, continuations, pairs):
    model = bind(tiny_config, tiny_params)
    usable = [c for c in continuations if len(c.response) > 1]
    for n, c in enumerate(usable):
        cut = int(pairs.cut_N[n])
        assert 1 <= cut < len(c.response)
        h_CD = np.asarray(hidden_states(model, jnp.array([c.prompt + c.response])))[0]
        np.testing.assert_allclose(pairs.context_ND[n], h_CD[len(c.prompt) + cut - 1], atol=1e-4)
        np.testing.assert_allclose(pairs.target_ND[n], h_CD[len(c.prompt) + cut :].mean(0), atol=1e-4)


def test_cuts_are_half_at_candidates_and_half_anywhere(tiny_config, tiny_params):
    rng = np.random.default_rng(1)
    c = Continuation(0, [1, 2], rng.integers(0, 23, 20).tolist(), True)
    n = 2000
    got = extract(
        tiny_config, tiny_params, rows_of([c] * n), jax.random.key(0), temperature=TEMPERATURE, branching=BRANCHING
    )
    h = entropies(tiny_config, tiny_params, c)
    eligible = np.arange(1, 20 - 2)  # not token 0, not the last two (min_suffix), the stop token among them
    top = eligible[np.argsort(-h[eligible])[:4]]  # 20% of 20 tokens
    share = np.bincount(np.asarray(got.cut_N), minlength=20) / n
    expected = np.where(np.arange(20) >= 1, 0.5 / 19, 0.0)
    expected[top] += 0.5 / 4
    np.testing.assert_allclose(share, expected, atol=0.03)
    assert share[0] == 0


def test_other_policies_cut_where_their_branches_begin(tiny_config, tiny_params, continuations):
    """Shared points of `logp`: the one least likely token, but for the first and the last min(2, length / 4)."""
    branching = Branching(k=3, at="logp", min_suffix=2)
    rows, how = rows_of(continuations), {"temperature": TEMPERATURE, "anywhere": 0.0}
    got, cut_at_one = extract(tiny_config, tiny_params, rows, jax.random.key(0), branching=branching, **how), 0
    for n, c in enumerate(c for c in continuations if len(c.response) > 1):
        lg = logits(bind(tiny_config, tiny_params), jnp.array([c.prompt + c.response]))[0, len(c.prompt) - 1 : -1]
        logp_T = np.asarray(jax.nn.log_softmax(lg / TEMPERATURE))[np.arange(len(c.response)), c.response]
        eligible = range(1, len(c.response) - max(min(2, len(c.response) // 4), int(c.stopped)))
        if eligible:
            assert got.cut_N[n] == min(eligible, key=lambda t: logp_T[t])
            cut_at_one += 1
    assert cut_at_one > 3


def test_a_surprise_is_the_gradient_of_the_log_probabilities(tiny_config, tiny_params, continuations):
    """Differentiated by the hidden states of the next three tokens; weights 1, 2^(-2/3), 2^(-4/3)."""
    pairs = extract(
        tiny_config,
        tiny_params,
        rows_of(continuations),
        jax.random.key(3),
        temperature=TEMPERATURE,
        branching=BRANCHING,
        window=3,
        anywhere=0.0,
    )
    model, head_VD = bind(tiny_config, tiny_params), tiny_params["embed"]
    for n, c in enumerate(c for c in continuations if len(c.response) > 1):
        cut = int(pairs.cut_N[n])
        h_CD = hidden_states(model, jnp.array([c.prompt + c.response]))[0]
        expected = 0.0
        for i, token in enumerate(c.response[cut : cut + 3]):

            def logp(h_D, token=token):
                return jax.nn.log_softmax(head_VD @ h_D / TEMPERATURE)[token]

            gradient_D = jax.grad(logp)(h_CD[len(c.prompt) + cut + i - 1])
            expected += 2 ** (-2 * i / 3) * TEMPERATURE * np.asarray(gradient_D)
        np.testing.assert_allclose(pairs.target_ND[n], expected, atol=2e-3 * np.abs(expected).max() + 1e-4)


def test_nothing_of_a_surprise_can_be_predicted(tiny_config, tiny_params):
    """Its mean over what the model itself would say next is zero."""
    prefix, v = [1, 2, 3, 4], tiny_config.vocab_size
    rows = rows_of([Continuation(0, prefix[:3], [prefix[3], token], True) for token in range(v)])
    pairs = extract(
        tiny_config, tiny_params, rows, jax.random.key(0), temperature=TEMPERATURE, branching=BRANCHING, window=1
    )
    assert set(np.asarray(pairs.cut_N)) == {1}
    p_V = jax.nn.softmax(logits(bind(tiny_config, tiny_params), jnp.array([prefix]))[0, -1] / TEMPERATURE)
    np.testing.assert_allclose(p_V @ pairs.target_ND, 0.0, atol=1e-4)
    assert float(jnp.abs(pairs.target_ND).max()) > 0.1


def test_chunks_do_not_change_the_result(tiny_config, tiny_params, continuations, pairs, monkeypatch):
    monkeypatch.setattr(features, "TOKENS_PER_CHUNK", 4 * 22)  # 4 rows of 6, then 2 and two repeats
    rows, key = rows_of(continuations), jax.random.key(3)
    again = extract(tiny_config, tiny_params, rows, key, temperature=TEMPERATURE, branching=BRANCHING)
    np.testing.assert_array_equal(again.cut_N, pairs.cut_N)
    np.testing.assert_allclose(again.target_ND, pairs.target_ND, atol=1e-5)
    np.testing.assert_array_equal(again.rows.tokens_NC, pairs.rows.tokens_NC)


def test_no_prompt_is_on_both_sides_of_the_split():
    rows = rows_of([Continuation(i % 8, [1], [2, 3], True) for i in range(24)])
    train, held_out = split_by_prompt(rows, fraction=0.25)
    ids = np.asarray(rows.prompt_id_N)
    assert set(ids[held_out]) == {0, 4} and set(ids[train]) == {1, 2, 3, 5, 6, 7}
    assert sorted([*train, *held_out]) == list(range(24))
