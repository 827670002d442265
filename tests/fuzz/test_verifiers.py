"""A sample of the hostile answers of hostile.py against the trainer's own `Scorer`; the benchmark tries all of them."""

import time

import hostile
import numpy as np
import pytest

from iiblpo_jax.data.arithmetic import make_arithmetic
from iiblpo_jax.data.task import boxed_task
from iiblpo_jax.rewards.scorer import Scorer
from iiblpo_jax.rewards.verifier import Problem

SAMPLE = 110
MATH, ARITHMETIC = boxed_task("math", [], []), make_arithmetic(seed=0, train_size=1, heldout_size=1)


def test_the_attacks_are_always_the_same_and_of_every_kind():
    first = list(hostile.attacks(240))
    assert first == list(hostile.attacks(240))
    assert {attack.family for attack in first} == {family.__name__ for family in (*hostile.MATH, hostile.evaluated)}
    assert {attack.verifier.split(":")[0] for attack in first} == {"math", "exact", "gym"}


def test_no_attack_scores_and_none_takes_two_seconds():
    attacks = [attack for attack in hostile.attacks(SAMPLE) if not attack.verifier.startswith("gym")]
    names = {"math": "math", "exact": "arithmetic"}
    with Scorer([MATH, ARITHMETIC], workers=1, timeout_s=0.5) as scorer:
        right = Problem(id="right", question="?", answer="\\frac{1}{2}", task="math")
        assert scorer.score([right], ["\\boxed{0.5}"])[0] == [1.0]
        for attack in attacks:
            problem = Problem(id="attack", question="?", answer=attack.gold, task=names[attack.verifier])
            if not scorer._pool.pids():  # the attack before ended its worker: the start of a new one is not this one's
                scorer.score([right], ["\\boxed{0.5}"])
            start = time.monotonic()
            rewards, *_ = scorer.score([problem], [attack.response])
            assert time.monotonic() - start < 2.0 and rewards == [0.0], attack
        assert scorer.score([right], ["\\boxed{0.5}"])[0] == [1.0]  # whatever they did, the pool still works


def test_attacks_on_scorers_that_evaluate(tmp_path, monkeypatch):
    pytest.importorskip("reasoning_gym", reason="extra [gym] is not installed")
    from iiblpo_jax.data.gym import make_gym

    monkeypatch.chdir(tmp_path)
    names = ("countdown", "polynomial_multiplication", "n_queens")
    tasks = {name: make_gym(name, seed=0, train_size=1, heldout_size=1) for name in names}
    programs = [
        "__import__('os').system('touch {}')",
        "open('{}', 'w')",
        "[open('{}', 'w')]",
        'exec(\'open("{}", "w")\')',
    ]
    with Scorer(list(tasks.values()), workers=1, timeout_s=0.5) as scorer:
        problems = [tasks[name].heldout[0] for name in names for _ in programs]
        responses = [f"<answer>{program.format(tmp_path / 'x')}</answer>" for _ in names for program in programs]
        rewards, _, counts = scorer.score(problems, responses)
        golds = scorer.score([tasks[n].heldout[0] for n in names], [gold(tasks[n].heldout[0]) for n in names])[0]
    np.testing.assert_array_equal(rewards, 0.0)
    np.testing.assert_array_equal(golds, 1.0)
    assert counts == {"timeouts": 0, "crashes": 0} and not list(tmp_path.iterdir())


def gold(problem) -> str:
    return f"<answer>{problem.answer}</answer>"
