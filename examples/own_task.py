"""A task of one's own: the last digit of a sum. --config.task.path=examples/own_task.py:make"""

import random

from iiblpo_jax import Problem, Task, one_by_one


def grade(problem, response):
    """1 for the right digit after the last #, a tenth for any number there. What is named besides becomes a metric."""
    answer = response.rpartition("#")[2].strip()
    return {"reward": 1.0 if answer == problem.answer else 0.1 * answer.isdigit(), "digits": len(answer)}


def make(heldout_size=20):
    pairs = [(a, b) for a in range(10) for b in range(10)]
    random.Random(0).shuffle(pairs)
    problems = [Problem(id=f"{a}+{b}", question=f"{a}+{b}=", answer=str((a + b) % 10), task="digit") for a, b in pairs]
    train, heldout = problems[heldout_size:], problems[:heldout_size]
    return Task(name="digit", train=train, heldout=heldout, verifier=one_by_one(grade), cue="#", marker="#")
