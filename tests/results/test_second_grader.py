"""Where two graders differ on the samples of an evaluation."""

import numpy as np
import pytest

from iiblpo_jax import InputError
from iiblpo_jax.data.arithmetic import make_arithmetic
from iiblpo_jax.data.prompts import Prompt
from iiblpo_jax.results.attempts import attempts_of
from iiblpo_jax.results.second_grader import check_grader, disagreements
from iiblpo_jax.results.stored import write_disagreements


def test_samples_on_which_graders_differ_are_listed(tmp_path):
    """The task reads behind #, mathematics in the box."""
    task = make_arithmetic(seed=0, train_size=1, heldout_size=2)
    prompts = [Prompt(problem=problem, tokens=[1], answer=[], cue=[]) for problem in task.heldout]
    texts = [
        (f"#{p.answer}", f"\\boxed{{{p.answer}}}", f"\\boxed{{{p.answer}}} #{p.answer}", "no") for p in task.heldout
    ]
    rewards = np.array([1, 0, 1, 0], np.float32)
    attempts = [attempts_of(four, [[1]] * 4, rewards, np.zeros(4, bool)) for four in texts]
    listed, counts = disagreements(task, prompts, attempts, "math", workers=1, timeout_s=5.0)
    first, second = (problem.id for problem in task.heldout)
    assert [line.partition(":")[0] for line in listed] == [
        f"{problem} sample {number}" for problem in (first, second) for number in (0, 1)
    ]
    assert listed[0].endswith("arithmetic 1, math 0") and listed[1].endswith("arithmetic 0, math 1")
    assert counts == ["8 pairs: right by both 2, by arithmetic alone 2, by math alone 2, by none 2"]
    path = write_disagreements(tmp_path / "step_000007.json", "gym:x", "math", listed + counts)
    assert path.name == "step_000007-gym-x-math.txt" and path.read_text().splitlines() == listed + counts


def test_an_unknown_grader_is_refused():
    check_grader("")
    check_grader("math_verify")
    with pytest.raises(InputError, match="--second_grader=mine is not known; use one of math, math_verify"):
        check_grader("mine")
