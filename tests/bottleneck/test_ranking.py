"""The labelled responses of benchmarks/ranking_set.py, and that S_IB puts them in the order that is known."""

import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from iiblpo_jax.defaults import default_config
from iiblpo_jax.model.decoder import bind, logits
from iiblpo_jax.rewards.exact import grade

COUNT = 12


@pytest.fixture(scope="module")
def ranking():
    """The benchmark as a module; the folder's own modules are gone afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        import score_ranking

        yield score_ranking
    for name in ("score_ranking", "ranking_set", "harness"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def labelled(ranking):
    return ranking.labelled_set("arithmetic", count=COUNT, seed=0)


@pytest.fixture(scope="module")
def reference(ranking, labelled):
    return ranking.Reference(labelled.reference)


@pytest.fixture(scope="module")
def facts(ranking, labelled, reference):
    return ranking.labelled_facts(reference, labelled)


@pytest.mark.parametrize("task", ["arithmetic", "countdown", "words"])
def test_the_set_is_what_it_says(ranking, task):
    labelled = ranking.labelled_set(task, count=60, seed=3)
    assert labelled == ranking.labelled_set(task, count=60, seed=3) != ranking.labelled_set(task, count=60, seed=4)
    for quadruple in labelled.quadruples:
        concise, padded, loop, drift = quadruple.texts
        marker, answer = labelled.task.marker, quadruple.problem.answer
        finals = [text.rpartition(marker)[2].strip(" .") for text in (concise, padded, drift)]
        assert finals[:2] == [answer, answer] and finals[2] != answer
        assert marker not in loop and quadruple.problem.question in loop
        stop = ";" if task != "words" else "."
        steps = concise.split(stop)[:-1]
        assert set(steps) <= set(padded.split(stop)) and len(padded) > len(concise)
        assert drift.split(stop)[0] == steps[0] and drift.count(stop) == concise.count(stop)
        assert 0.8 * len(padded) <= len(loop) <= 1.3 * len(padded) + 60  # 60: the piece that was begun


def test_the_verifier_agrees_with_the_labels(labelled):
    for quadruple in labelled.quadruples:
        right = [grade(text, quadruple.problem.answer, marker="#") for text in quadruple.texts]
        assert right == [1.0, 1.0, 0.0, 0.0]


def test_the_default_score_orders_what_the_literal_one_does_not(ranking, facts):
    ordered = {name: ranking.orders(ranking.SCORES[name](facts))["ordered"] for name in ("default", "I(q;r)")}
    assert ordered["default"] >= 0.9 and ordered["I(q;r)"] <= 0.3


def test_the_default_score_from_plain_forwards(ranking, labelled, reference, facts):
    """S_IB once more: one unpacked forward a text, a full softmax, and the formula in numpy."""
    forward = jax.jit(lambda params, row: logits(bind(reference.config, params), row[None])[0])
    encode, eos, start = reference.tokenizer.encode, reference.tokenizer.eos_id, reference.tokenizer.start_id

    def logp(context, text):
        row = np.zeros(160, np.int32)
        row[: len(context) + len(text)] = [*context, *text]
        rows = np.asarray(forward(reference.params, row), np.float64)
        rows -= np.log(np.exp(rows).sum(-1, keepdims=True))
        return sum(rows[len(context) + i - 1, token] for i, token in enumerate(text))

    ib = default_config().ib

    def standardised(x):
        return (np.array(x) - np.mean(x)) / (np.std(x) + 1e-4)

    score_PG = ranking.SCORES["default"](facts)
    for p, quadruple in enumerate(labelled.quadruples[:3]):
        question, answer = encode(quadruple.problem.question), encode(quadruple.problem.answer)
        gains, costs = [], []
        for kind, text in zip(ranking.KINDS, quadruple.texts, strict=True):
            reasoning = encode(text.partition("#")[0])
            tokens = encode(text) + [eos] * (kind != "loop")
            gain = logp([*question, *reasoning, *encode("#")], answer) - logp([*question, *encode("#")], answer)
            gains.append(gain / len(answer))
            costs.append(-logp([start], tokens) + ib.length_cost * len(tokens))
        mean_length = facts.length_PG[p].mean()
        expected = ib.beta * standardised(gains) - standardised(np.array(costs) / mean_length)
        np.testing.assert_allclose(score_PG[p], expected, atol=2e-3)


def test_orders_by_hand(ranking):
    score = np.array([[4.0, 3.0, 1.0, 2.0], [3.0, 3.0, 1.0, 0.0], [4.0, 1.0, 2.0, 3.0], [4.0, 3.0, 2.0, 5.0]])
    assert ranking.orders(score) == {
        "ordered": 0.25,
        "concise > padded": 0.75,
        "padded > loop": 0.75,
        "concise > drift": 0.75,
        "padded > drift": 0.5,
    }


def test_variance_explained(ranking):
    rng = np.random.default_rng(0)
    correct, length = rng.random((30, 8)) < 0.5, rng.integers(5, 50, (30, 8)).astype(float)
    offset = 100 * rng.normal(size=(30, 1))  # what differs between groups does not count
    assert ranking.explained(offset + 3 * correct - 0.2 * length, correct, length) == pytest.approx(1.0)
    noise = rng.normal(size=(30, 8))
    x = correct - correct.mean(1, keepdims=True)
    noise -= noise.mean(1, keepdims=True)
    noise -= x * (x * noise).sum() / (x**2).sum()
    mixed = x * np.sqrt((noise**2).sum() / (x**2).sum()) + noise  # two equal orthogonal parts
    assert ranking.explained(mixed, correct) == pytest.approx(0.5)
