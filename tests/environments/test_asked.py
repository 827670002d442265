"""The environments of a run: those of the package in this process, the user's own in workers that may be ended."""

import textwrap
from pathlib import Path

import pytest

from iiblpo_jax import Problem, Task
from iiblpo_jax.common import own_code
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.own import make_own
from iiblpo_jax.environments.asked import Environments, Turn
from iiblpo_jax.environments.calculator import Calculator
from iiblpo_jax.rewards.exact import Exact

ROOT = Path(__file__).parents[2]
MINE = """
    import os, time

    class Counter:
        turn_end = "?"

        def reset(self, problem):
            return {"asked": [problem.question]}

        def step(self, state, text):
            if "sleep" in text:
                time.sleep(60)
            if "raise" in text:
                raise ValueError("cannot answer this")
            if "number" in text:
                return state, 7
            asked = [*state["asked"], text]
            return {"asked": asked}, "|".join(asked), 0.25, len(asked) > 3

    class Broken(Counter):
        def reset(self, problem):
            raise KeyError("nothing to begin with")
"""


def task_of(environment, name="t"):
    return Task(
        name=name, train=[], heldout=[], verifier=Exact(marker="#"), cue="#", marker="#", environment=environment
    )


def problem(question, name="t"):
    return Problem(id=question, question=question, answer="1", task=name)


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    path = tmp_path_factory.mktemp("environments") / "mine_env.py"
    path.write_text(textwrap.dedent(MINE))
    return own_code.load_file(path)


def test_those_of_the_package_answer_here():
    environments = Environments([task_of(Calculator())])
    begun = environments.begin([problem("a"), problem("b")])
    turns = [Turn(problem("a"), begun[0], "1+1="), Turn(problem("b"), begun[1], "2*3=")]
    assert [reply.observation for reply in environments.answer(turns)] == ["2;", "6;"]
    assert environments.turn_end == "=" and environments.failed == 0


def test_the_users_own_answer_in_workers_and_their_failures_end_the_conversation(mine, capsys):
    environments = Environments([task_of(mine.Counter())], processes=1, timeout_s=0.5)
    try:
        [state] = environments.begin([problem("q")])
        assert isinstance(state, str)  # pickled there, and never read here
        [one] = environments.answer([Turn(problem("q"), state, "a?")])
        two, again = environments.answer([Turn(problem("q"), one.state, "b?"), Turn(problem("q"), one.state, "c?")])
        assert (one.observation, one.reward, one.done) == ("q|a?", 0.25, False)
        assert (two.observation, again.observation) == ("q|a?|b?", "q|a?|c?")  # a state may be taken up twice
        [last] = environments.answer([Turn(problem("q"), two.state, "d?")])
        assert last.done
        bad = environments.answer([Turn(problem("q"), state, text) for text in ("raise?", "number?", "sleep?", "x?")])
        assert [reply.done for reply in bad] == [True, True, True, False] and environments.failed == 3
        assert "cannot answer this" in capsys.readouterr().err
    finally:
        environments.close()


def test_the_example_answers_in_a_worker():
    """As the documents have it: three sums, then no more."""
    task = make_own(f"{ROOT}/examples/own_environment.py:make", data_dir=None, seed=0, options={})
    environments = Environments([task], processes=1)
    asked = task.train[0]
    [state] = environments.begin([asked])
    heard = []
    for text in ("3+4=", "7+5=", "12+x=", "1+1="):
        [reply] = environments.answer([Turn(asked, state, text)])
        state = reply.state
        heard.append(reply.observation)
    environments.close()
    assert heard == ["7;", "12;", "?;", "?;"] and environments.failed == 0


def test_refusals(mine):
    with pytest.raises(InputError, match=r"has no environment to answer its turns; set turns\.most=0"):
        Environments([task_of(None)])
    with pytest.raises(InputError, match="end their turns differently"):
        Environments([task_of(Calculator(), "a"), task_of(mine.Counter(), "b")])
    with pytest.raises(InputError, match="use an object with turn_end"):
        task_of("calculator")
    with pytest.raises(InputError, match="cannot be taken into a worker"):
        Environments([task_of(_unpicklable())])
    broken = Environments([task_of(mine.Broken())], processes=1)
    with pytest.raises(InputError, match="cannot begin problem 'q'"):
        broken.begin([problem("q")])
    broken.close()


def _unpicklable():
    class Local:
        turn_end = "?"
        reset = step = staticmethod(lambda *_: None)

    return Local()
