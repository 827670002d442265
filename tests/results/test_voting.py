"""Answers of a vote, merged by what a verifier takes for the same."""

import importlib

import numpy as np
import pytest

from iiblpo_jax.results.passk import maj_at_k
from iiblpo_jax.results.voting import MAX_KINDS, parties
from iiblpo_jax.rewards.exact import Exact
from iiblpo_jax.rewards.math import Math
from iiblpo_jax.rewards.verifier import Job, Verifier


def settle(decisions):
    """Jobs are done here."""

    def done(decision):
        if not isinstance(decision, Job):
            return decision
        module, _, function = decision.grader.partition(":")
        return getattr(importlib.import_module(module), function)(*decision.args)

    return np.array([done(decision) for decision in decisions])


def test_mathematics_votes_on_values():
    """Three ways to write one half outvote 2, which text would make the winner."""
    answers = [[r"\frac12", "2", "0.5", None, "1/2", "2"]]
    assert parties(Math(), answers, settle) == [["2" if a == "2" else a and r"\frac12" for a in answers[0]]]
    right = np.array([[a not in (None, "2") for a in answers[0]]])
    assert maj_at_k(answers, right, 6) == 0.0
    assert maj_at_k(parties(Math(), answers, settle), right, 6) == 1.0


def test_other_answers_vote_as_text_and_ask_nobody():
    answers = [["7", "07", None], ["7"], [None]]

    def none(decisions):
        assert not any(isinstance(decision, Job) for decision in decisions)
        return np.array(decisions)

    assert parties(Exact(marker="#"), answers, none) == answers


class Near(Verifier):
    """Numbers less than 2 apart are the same, which is not transitive."""

    def grade(self, problem, response):
        return 0.0

    def answer(self, response):
        return response

    def same(self, one, other):
        return float(abs(int(one) - int(other)) < 2)


def test_an_answer_joins_the_most_voted_one_that_it_is_the_same_as():
    assert parties(Near(), [["1", "2", "3", "3", "9"]], settle) == [["1", "3", "3", "3", "9"]]


def test_answers_that_end_badly_are_compared_no_further():
    """The second problem goes on; what the first one had found by then stays."""
    asked = []

    def hangs(decisions):
        asked.append(len(decisions))
        return np.array([np.nan, *decisions[1:]]) if len(asked) == 1 else np.array(decisions)

    found = parties(Near(), [["5", "5", "9", "6", "8"], ["1", "1", "4", "5"]], hangs)
    assert found == [["5", "5", "9", "5", "8"], ["1", "1", "4", "4"]]
    assert asked == [3 + 2, 1]


@pytest.mark.parametrize("kinds", [MAX_KINDS, 3 * MAX_KINDS])
def test_so_many_kinds_of_answers_are_compared(kinds):
    asked = []

    def count(decisions):
        asked.append(len(decisions))
        return np.zeros(len(decisions))

    answers = [[str(n) for n in range(kinds)]]
    assert parties(Near(), answers, count) == answers
    assert sum(asked) == MAX_KINDS * (MAX_KINDS - 1) // 2
