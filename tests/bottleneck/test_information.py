"""Both estimators against plain Python loops over lists of tokens and a full softmax."""

import jax
import numpy as np
import pytest

from iiblpo_jax.bottleneck import Reading, entropy_score, likelihood
from iiblpo_jax.common.padded import Padded, join_rows
from iiblpo_jax.model.decoder import bind, logits

START, TEMPERATURE = 1, 0.8
PROMPTS = [[3, 4, 5], [6, 7]]
RESPONSES = [[8, 9, 10, 2], [11, 2], [12, 13, 14, 15, 16], [5, 5, 5, 2], [6, 2], [7, 8, 9]]  # three a prompt
CUTS = [2, 0, 5, 3, 1, 1]
CUES = [[17], [18, 19]]
ANSWERS = [[20, 21], [22]]


def pad(rows, width):
    array = np.zeros((len(rows), width), np.int32)
    for row, tokens in zip(array, rows, strict=True):
        row[: len(tokens)] = tokens
    return array, np.array([len(r) for r in rows], np.int32)


EVIDENCE = {
    "prompt": Padded(*pad(PROMPTS, 4)),
    "response": Padded(*pad(RESPONSES, 6)),
    "cut_R": np.array(CUTS, np.int32),
    "cue": Padded(*pad(CUES, 3)),
    "answer": Padded(*pad(ANSWERS, 2)),
}


@pytest.fixture(scope="module")
def token_logps(tiny_config, tiny_params):
    """[log pi(text_i | context, text_<i)] by a full softmax over one sequence, padded to one length for one compile."""
    forward = jax.jit(lambda params, tokens: logits(bind(tiny_config, params), tokens))

    def score(context, text):
        rows = forward(tiny_params, pad([context + text], 16)[0])[0]
        rows = np.asarray(rows, np.float64) / TEMPERATURE
        logp = rows - np.log(np.exp(rows).sum(-1, keepdims=True))
        return [logp[len(context) + i - 1, token] for i, token in enumerate(text)]

    return score


def estimate(config, params, evidence=EVIDENCE, compression="description", **options):
    reading = Reading(start_id=START, temperature=TEMPERATURE, **options)

    def run(params, evidence):
        return likelihood(bind(config, params), **evidence, reading=reading, compression=compression)

    return jax.jit(run)(params, evidence)


@pytest.fixture(scope="module")
def information(tiny_config, tiny_params):
    return estimate(tiny_config, tiny_params, pack_tokens=30)  # several bins


def test_answer_term(information, token_logps):
    for r, response in enumerate(RESPONSES):
        q, cue, answer = PROMPTS[r // 3], CUES[r // 3], ANSWERS[r // 3]
        with_reasoning = token_logps(q + response[: CUTS[r]] + cue, answer)
        expected = (sum(with_reasoning) - sum(token_logps(q + cue, answer))) / len(answer)
        assert np.isclose(information.answer_R[r], expected, atol=1e-4)
    assert abs(information.answer_R[1]) < 1e-5  # nothing before the cut says nothing


def test_description_length_is_divided_by_the_mean_length_of_the_group(information, token_logps):
    for r, response in enumerate(RESPONSES):
        mean_length = [11 / 3, 9 / 3][r // 3]
        assert np.isclose(information.prompt_R[r], -sum(token_logps([START], response)) / mean_length, atol=1e-4)


def test_information_about_the_prompt_is_what_the_prompt_saves(tiny_config, tiny_params, information, token_logps):
    literal = estimate(tiny_config, tiny_params, pack_tokens=30, compression="information")
    for r, response in enumerate(RESPONSES):
        mean_length = [11 / 3, 9 / 3][r // 3]
        expected = (sum(token_logps(PROMPTS[r // 3], response)) - sum(token_logps([START], response))) / mean_length
        assert np.isclose(literal.prompt_R[r], expected, atol=1e-4)
    np.testing.assert_array_equal(literal.answer_R, information.answer_R)


def test_description_length_in_closed_form(tiny_config, tiny_params):
    """A model whose logits are all 0 writes every token in log V nats and learns nothing from anything."""
    silent = {**tiny_params, "embed": 0 * tiny_params["embed"]}  # the head is the embedding
    found = estimate(tiny_config, silent, pack_tokens=30)
    lengths = np.array([4, 2, 5, 4, 2, 3]) / np.repeat([11 / 3, 9 / 3], 3)
    np.testing.assert_allclose(found.prompt_R, lengths * np.log(tiny_config.vocab_size), rtol=1e-5)
    np.testing.assert_allclose(found.answer_R, 0.0, atol=1e-6)


def test_reference_logprobs(information, token_logps):
    for r, response in enumerate(RESPONSES):
        expected = token_logps(PROMPTS[r // 3], response) + [0.0] * (6 - len(response))
        np.testing.assert_allclose(information.ref_logp_RT[r], expected, atol=1e-4)


def test_bins_shards_and_padding_change_nothing(tiny_config, tiny_params, information):
    prompt, _ = pad(PROMPTS, 7)
    cue, _ = pad(CUES, 5)
    # What lies behind the lengths must not matter either.
    noisy = np.where(np.arange(7) < EVIDENCE["prompt"].length_N[:, None], prompt, 9)
    wider = {"prompt": EVIDENCE["prompt"]._replace(x_NW=noisy), "cue": EVIDENCE["cue"]._replace(x_NW=cue)}
    other = estimate(tiny_config, tiny_params, EVIDENCE | wider, pack_tokens=200, shards=2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), other, information)


def test_join_rows_by_hand():
    a, b = pad([[1, 2], [3]], 2), pad([[], [4, 5, 6]], 3)
    rows, length = join_rows([a, b, a])
    assert rows.tolist() == [[1, 2, 1, 2, 0, 0, 0], [3, 4, 5, 6, 3, 0, 0]]
    assert length.tolist() == [4, 5]


def test_entropy_score_by_hand():
    advantage, mask = np.array([[2.0], [-1.0]]), np.array([[1, 1, 0], [1, 1, 1]])
    entropy = np.array([[0.5, 1.5, 9.0], [0.3, 0.3, 0.9]])
    np.testing.assert_allclose(entropy_score(advantage, entropy, mask), [2.0, -0.5], rtol=1e-6)
    per_token = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(entropy_score(per_token, entropy, mask), [0.25, 0.3], rtol=1e-6)
