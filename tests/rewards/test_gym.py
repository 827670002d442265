import pytest

from iiblpo_jax.rewards import gym


def test_extract_the_last_closed_answer():
    assert gym.extract("<answer>1</answer> no: <answer> 2 </answer>.") == "2"
    assert gym.extract("<answer>1</answer> then <answer>2") == "1"
    assert gym.extract("2") is None
    assert gym.extract("</answer>2<answer>") is None
    assert gym.extract("<answer>" + "1" * 1_000_000 + "</answer>") is None


def test_the_packages_own_scorer():
    reasoning_gym = pytest.importorskip("reasoning_gym")
    entry = reasoning_gym.create_dataset("chain_sum", seed=1, size=1, max_terms=2)[0]
    assert gym.grade("chain_sum", '{"max_terms": 2}', entry, entry["answer"]) == 1.0
    assert gym.grade("chain_sum", '{"max_terms": 2}', entry, "no number") < 0.1
