import itertools
import random
from collections import Counter

import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.arithmetic import make_arithmetic
from iiblpo_jax.data.countdown import ALPHABET, TARGETS, canonical, chain, is_heldout, make_countdown, random_signs
from iiblpo_jax.data.registry import make_task
from iiblpo_jax.rewards.scorer import Scorer


def parsed(problem):
    """(numbers, target) of the question."""
    numbers, _, target = problem.question.removesuffix(":").partition(">")
    return [int(number) for number in numbers.split(",")], int(target)


def names(problems):
    return {canonical(*parsed(problem)) for problem in problems}


def values(numbers):
    """Every value that some order and signs give, by trying all."""
    return {
        first + sum(sign * number for sign, number in zip(signs, rest, strict=True))
        for first, *rest in itertools.permutations(numbers)
        for signs in itertools.product((1, -1), repeat=len(rest))
    }


def test_a_worked_chain():
    assert chain((9, -4, 3)) == ("9-4=5;5+3=8;#8", 8)
    assert chain((3, -9, 4)) == ("3-9=-6;-6+4=-2;#-2", -2)


def test_random_signs_use_every_number_and_reach_every_plan():
    rng = random.Random(0)
    drawn = {tuple(random_signs(rng, (1, 2, 3))) for _ in range(1000)}
    assert len(drawn) == 6 * 4 and all(signed[0] > 0 for signed in drawn)
    assert all(sorted(map(abs, signed)) == [1, 2, 3] for signed in drawn)


def test_every_target_can_be_reached_and_every_rationale_is_accepted():
    task = make_countdown(seed=3, train_size=300, heldout_size=60)
    problems = [*task.train, *task.heldout]
    for problem in problems:
        numbers, target = parsed(problem)
        assert (problem.metadata["numbers"], problem.answer) == (numbers, str(target))
        assert target in values(numbers) and target in TARGETS and set(numbers) <= set(range(1, 10))
        assert set(problem.question + problem.rationale) <= set(ALPHABET)
    with Scorer([task]) as scorer:
        rewards, *_ = scorer.score(problems, [problem.rationale for problem in problems])
        assert scorer._pool.pids() == []  # graded in this process
    assert (rewards == 1.0).all()


def test_adding_everything_up_is_seldom_enough():
    problems = make_countdown(seed=0).train
    assert sum(sum(parsed(problem)[0]) == parsed(problem)[1] for problem in problems) < 0.25 * len(problems)


def test_heldout_is_disjoint_from_training_of_every_seed_in_any_order():
    tasks = [make_countdown(seed=seed) for seed in range(3)]
    heldout = tasks[0].heldout
    assert len(heldout) == len(names(heldout)) == 512  # no repeats
    assert all(is_heldout(*parsed(problem)) for problem in heldout)
    for task in tasks:
        assert task.heldout == heldout
        assert not names(heldout) & names(task.train)


def test_seed_decides_the_training_set():
    first, again, other = (make_countdown(seed=seed, train_size=100, heldout_size=1).train for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_number_of_numbers_is_uniform_in_training():
    counts = Counter(len(parsed(problem)[0]) for problem in make_countdown(seed=0, train_size=3000).train)
    assert set(counts) == {3, 4, 5}
    assert all(abs(count - 1000) < 120 for count in counts.values())  # 4.6 standard deviations of 25.8


@pytest.mark.parametrize("bad", [{"k_min": 1}, {"k_max": 10}, {"k_min": 5, "k_max": 4}, {"train_size": 0}])
def test_impossible_options(bad):
    with pytest.raises(InputError, match="countdown with"):
        make_countdown(seed=0, **bad)


def test_plans():
    task = make_task("countdown", options={"train_size": 1, "heldout_size": 1})
    assert task.plan("9-4=5;5+3=8;#8") == "9-4+3"
    assert task.plan("nothing") is None
    sums = make_arithmetic(seed=0, train_size=1, heldout_size=1)
    assert sums.plan(" 6+5=11;#11\n") == "6+5=11;#11"
    assert sums.plan(" \n") is None
