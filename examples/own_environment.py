"""An environment of one's own: it adds up what it is asked, and is tired after three sums.

--config.task.path=examples/own_environment.py:make
"""

import random

from iiblpo_jax import Problem, Task, one_by_one


class Adder:
    """The policy says `3+4=` and hears `7;`."""

    turn_end = "="

    def reset(self, problem):
        return {"sums": 0}

    def step(self, state, text):
        terms = text.rpartition(";")[2].rstrip("=").split("+")
        known = all(term.isdigit() for term in terms)
        answer = f"{sum(map(int, terms))};" if known and state["sums"] < 3 else "?;"
        return {"sums": state["sums"] + 1}, answer


def grade(problem, response):
    return float(response.rpartition("#")[2].strip() == problem.answer)


def make(heldout_size=20):
    triples = [(a, b, c) for a in range(10) for b in range(10) for c in range(10)]
    random.Random(0).shuffle(triples)
    problems = [
        Problem(id=f"{a}+{b}+{c}", question=f"{a}+{b}+{c}=", answer=str(a + b + c), task="adder") for a, b, c in triples
    ]
    return Task(
        name="adder",
        train=problems[heldout_size:],
        heldout=problems[:heldout_size],
        verifier=one_by_one(grade),
        cue="#",
        marker="#",
        environment=Adder(),
    )
