"""Verifiers of the user's own: in worker processes, counted and shown where they fail."""

import functools
import textwrap

import numpy as np
import pytest

from iiblpo_jax import Problem, Task, one_by_one
from iiblpo_jax.common import own_code
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.rewards import own, together
from iiblpo_jax.rewards.own import Origin
from iiblpo_jax.rewards.scorer import Scorer

MINE = """
    import os, time
    from iiblpo_jax import one_by_one

    PARENT = os.getppid()

    def alike(problems, responses):
        return [float(r == p.answer) for p, r in zip(problems, responses)]

    def judge(problem, response):
        if response == "raise":
            raise ValueError("cannot judge this")
        if response == "sleep":
            time.sleep(60)
        if response == "exit":
            os._exit(1)
        return {"nan": float("nan"), "two": 2.0, "text": "good", "none": None, "empty": {}}.get(response, 0.5)

    each = one_by_one(judge)

    def together(problems, responses):
        return [judge(p, r) for p, r in zip(problems, responses)]

    def wrong_length(problems, responses):
        return [1.0] * (len(responses) + ("odd" in responses))

    def named(problems, responses):
        import numpy
        return [{"form": numpy.float32(0.25), "fact": 0.5} if r == "sum" else {"reward": 1, "length": len(r)}
                for r in responses]

    def reaches_out(problem, response):
        path = problem.metadata["path"]
        with open(path, "w") as file:
            file.write(response)
        os.system(f"echo there >> {path}")
        return 1.0

    def sizes(problems, responses):
        return [{"reward": 0.0, "size": len(responses)} for _ in responses]

    def hidden(limit):
        return lambda problems, responses: [float(len(r) > limit) for r in responses]

    def make(limit=2):
        from iiblpo_jax import Task
        return Task(name="t", train=[], heldout=[], verifier=hidden(limit), cue="#", marker="#")

    class Judge:
        def __init__(self, right): self.right = right
        def __call__(self, problems, responses): return [float(r == self.right) for r in responses]
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """mine(name) -> what the file above calls so; mine.path is its path."""
    path = tmp_path_factory.mktemp("own") / "mine.py"
    path.write_text(textwrap.dedent(MINE))

    def named(name):
        return own_code.load(f"{path}:{name}", key="task.path")

    named.path = path
    return named


def task_of(verifier, **changes):
    return Task(
        **({"name": "t", "train": [], "heldout": [], "verifier": verifier, "cue": "#", "marker": "#"} | changes)
    )


def problem(answer="", **metadata):
    return Problem(id=f"id of {answer}", question="which?", answer=answer, task="t", metadata=metadata)


def score(verifier, responses, *, problems=None, **how):
    with Scorer([task_of(verifier)], own_workers=1, **how) as scorer:
        return scorer.score(problems or [problem("a")] * len(responses), responses)


@pytest.fixture(scope="module")
def failing(mine):
    """A scorer whose verifier is judged one by one and fails in every way."""
    with Scorer([task_of(mine("each"))], own_workers=1, own_timeout_s=0.3, max_failures=0.5) as scorer:
        yield scorer


def test_any_callable_is_a_verifier(mine):
    problems = [problem(answer) for answer in "abc"]
    for verifier in (mine("alike"), functools.partial(mine("alike")), one_by_one(mine("judge")), mine("Judge")("b")):
        grades = score(verifier, ["x", "b", "y"], problems=problems)
        assert grades.rewards.tolist() in ([0.0, 1.0, 0.0], [0.5] * 3)
        assert grades.counts == {"timeouts": 0, "crashes": 0} and np.isfinite(grades.columns["seconds"]).all()


@pytest.mark.parametrize(
    ("response", "kind", "what"),
    [
        ("raise", "crashes", r"ValueError: cannot judge this \(mine\.py line 12\)"),
        ("sleep", "timeouts", r"it took longer than reward\.timeout = 0\.3 s"),
        ("exit", "crashes", "its process failed"),
        ("nan", "crashes", "the verifier returned nan as reward"),
        ("two", "crashes", r"the verifier returned the reward 2; scale rewards to 0\.\.1, 1 = right"),
        ("text", "crashes", "the verifier returned 'good' as reward, a str; no number"),
        ("none", "crashes", "the verifier returned 'None' as reward, a NoneType; no number"),
        ("empty", "crashes", "the verifier returned a dict without numbers"),
    ],
)
def test_a_reward_that_fails_is_counted_and_the_first_is_shown(failing, capfd, response, kind, what):
    failing._first_failure = ""
    grades = failing.score([problem("a"), problem("b"), problem("c")], ["fine", response, response])
    assert grades.rewards.tolist() == [0.5, 0.0, 0.0]
    assert grades.counts == {"timeouts": 0, "crashes": 0} | {kind: 2}
    np.testing.assert_array_equal(grades.columns["verdict"], np.float32([0.5, np.nan, np.nan]))
    shown = capfd.readouterr().err
    assert shown.count("WARNING: the verifier of task 't' failed on problem 'id of b' ('which?')") == 1
    with pytest.raises(InputError, match=rf"2 of 3 rewards failed, more than reward\.max_failures = 0\.5.*{what}"):
        failing.check(grades.counts, 3)
    failing.check(grades.counts, 4)


def test_one_bad_response_costs_only_itself_where_a_call_has_several(mine):
    responses = ["fine", "raise", "fine", "sleep", "fine", "nan"]
    grades = score(mine("together"), responses, own_batch=3, own_timeout_s=0.3)
    assert grades.rewards.tolist() == [0.5, 0.0, 0.5, 0.0, 0.5, 0.0]
    assert grades.counts == {"timeouts": 1, "crashes": 2}


def test_a_call_of_the_wrong_length_is_none_of_its_responses_fault(mine):
    grades = score(mine("wrong_length"), ["even", "odd", "even"])
    assert grades.rewards.tolist() == [1.0, 0.0, 1.0] and grades.counts["crashes"] == 1


def test_after_too_many_failures_nobody_waits_for_the_rest(mine):
    with Scorer([task_of(mine("each"))], own_workers=1, own_timeout_s=0.2, max_failures=0.1) as scorer:
        grades = scorer.score([problem()] * 20, ["sleep"] * 20)
    assert grades.counts["timeouts"] == 3  # 3 of 20 are more than a tenth; one by one that would be 4 seconds


def test_named_numbers_are_metrics_and_the_reward_their_sum_or_their_own_entry(mine):
    grades = score(mine("named"), ["sum", "four", "sum", "seven.."])
    assert grades.rewards.tolist() == [0.75, 1.0, 0.75, 1.0]
    nan = np.nan
    parts = {
        "t/part/form": [0.25, nan, 0.25, nan],
        "t/part/fact": [0.5, nan, 0.5, nan],
        "t/part/length": [nan, 4, nan, 7],
    }
    assert set(grades.columns) == {"verdict", "seconds", *parts}
    for name, column in parts.items():
        np.testing.assert_array_equal(grades.columns[name], np.float32(column))


def test_a_call_has_so_many_responses_at_most(mine):
    assert score(mine("sizes"), ["x"] * 5, own_batch=2).columns["t/part/size"].tolist() == [2.0, 2.0, 2.0, 2.0, 1.0]


def test_code_of_ones_own_may_reach_out(mine, tmp_path):
    path = tmp_path / "file"
    asked = problem(path=str(path))
    assert score(one_by_one(mine("reaches_out")), ["here\n"], problems=[asked], own_timeout_s=30).rewards == [1.0]
    assert path.read_text() == "here\nthere\n"


def test_what_cannot_be_pickled_is_had_from_its_origin(mine):
    with pytest.raises(InputError, match=r"cannot be taken into a worker process .*define it at the top of a file"):
        Scorer([task_of(mine("hidden")(2))])
    verifier = task_of(mine("hidden")(2)).verifier
    origin = Origin(reference=f"{mine.path}:make", key="task.path", options={"limit": 2})
    found = own.made(own.Own(function=verifier.function, task="t", marker="#", origin=origin).recipe())
    assert found([problem()] * 2, ["ab", "abc"]) == [{"reward": 0.0}, {"reward": 1.0}]


def test_a_verifier_that_no_worker_can_load_is_refused_before_anything_is_scored(monkeypatch):
    monkeypatch.setattr(own.Own, "recipe", lambda self: ("pickled", b"no pickle", {}))
    with pytest.raises(InputError, match=r"the verifier of task 't' does not load in a worker process \(.*Unpickling"):
        Scorer([task_of(len)])


def test_the_final_answer_stands_between_marker_and_closing():
    def answer(text, **changes):
        return task_of(len, **changes).verifier.answer(text)

    assert answer("1+1=2;# 2 ") == "2"
    assert answer("no marker") is None
    assert answer("<a>x</a> <a>y</a> z", marker="<a>", closing="</a>") == "y"
    assert answer(r"so \boxed{\frac{1}{2}}.", marker="\\boxed{", closing="}") == r"\frac{1}{2}"


def test_processes_share_named_numbers_and_stop_together(mine, monkeypatch):
    """Two processes of one response each; both see both, and the one whose response was fine stops as well."""
    sent = []

    def gather(x):  # what the other process has is what this one has
        sent.append(x)
        return together.jax.tree.map(lambda leaf: np.stack([leaf, leaf]), x)

    monkeypatch.setattr(together.jax, "process_count", lambda: 2)
    monkeypatch.setattr(together.jax, "process_index", lambda: 0)
    monkeypatch.setattr(together.multihost_utils, "process_allgather", gather)
    with Scorer([task_of(mine("named"))], own_workers=1) as scorer:
        grades = together.score_together(scorer, [problem()] * 2, ["four", "four"])
    assert grades.columns["t/part/length"][0] == 8.0  # the sum of both, which here are of the same response
    with (
        Scorer([task_of(mine("each"))], own_workers=1, max_failures=0.5) as scorer,
        pytest.raises(InputError, match="2 of 2 rewards failed"),
    ):
        together.score_together(scorer, [problem()] * 2, ["raise", "fine"])
