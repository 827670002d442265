"""Two graders on a file of answers: what is listed, what is counted, what is refused."""

import json
import subprocess
import sys

import numpy as np
import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.arithmetic import make_arithmetic
from iiblpo_jax.rewards.audit import audit, read_pairs, report
from iiblpo_jax.rewards.scorer import Grades

ARITHMETIC = make_arithmetic(seed=0, train_size=1, heldout_size=1)
POOL = {"workers": 1, "timeout_s": 5.0}
ROWS = [
    {"gold": "14", "response": "6+8=14;#14", "correct": True},
    {"gold": "14", "response": "#15 or \\boxed{14}", "correct": False},
    {"gold": "14", "response": "so it is $\\boxed{14.0}$", "correct": True},
    {"gold": "14", "text": "no idea", "correct": False, "step": 7},
]


@pytest.fixture
def file(tmp_path):
    def write(rows):
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


def test_disagreements_are_listed_and_counted(file):
    """The task reads behind #, mathematics in the box: they differ on rows 1, 2 and 3."""
    assert list(audit(file(ROWS), "task,math", [ARITHMETIC], **POOL)) == [
        "row 1: gold '14', answer '14': task 1, math 0; judged right",
        "row 2: gold '14', answer '15 or \\\\boxed{14}': task 0, math 1; judged wrong",
        "row 3: gold '14', answer 'so it is $\\\\boxed{14.0}$': task 0, math 1; judged right",
        "4 pairs: right by both 0, by task alone 1, by math alone 2, by none 1",
        "against `correct` of 4 rows: task is wrong on 1 (25.0%): refuses 1 right answers, pays 0 wrong ones",
        "against `correct` of 4 rows: math is wrong on 2 (50.0%): refuses 1 right answers, pays 1 wrong ones",
    ]


def test_answers_that_hang_a_grader_are_said(file):
    pairs, exact = read_pairs(file(ROWS[:1])), [ARITHMETIC.verifier]
    none, two = (Grades(np.zeros(1, np.float32), {}, {"timeouts": n, "crashes": 0}) for n in (0, 2))
    lines = list(report(pairs, {"task": (exact, none), "math": (exact, two)}))
    assert lines[1] == "math came to no end with some: 2 timeouts, which count as wrong; raise data.verifier_timeout"


def test_a_mix_goes_by_the_task_of_a_row(file):
    other = make_arithmetic(seed=0, train_size=1, heldout_size=1)
    tasks = [ARITHMETIC, type("Task", (), {"name": "other", "verifier": other.verifier})()]
    rows = [row | {"task": "other"} for row in ROWS[:1]]
    first, *_ = audit(file(rows), "task,math", tasks, **POOL)
    assert first.startswith("row 1: gold '14', answer '14': task 1, math 0")
    with pytest.raises(InputError, match="row 1 has task None; the config has arithmetic, other"):
        list(audit(file(ROWS), "task,math", tasks, **POOL))


@pytest.mark.parametrize(
    ("rows", "graders", "words"),
    [
        ([], "task,math", "has no rows; give a file of JSON Lines with gold and response"),
        ([{"gold": "1"}], "task,math", "row 1 has no text in `gold` or in `response`; it has gold"),
        ([{"gold": 1, "response": "1"}], "task,math", "row 1 has no text in `gold`"),
        (ROWS, "task", "--graders=task names no two graders; use two of task, math, math_verify"),
        (ROWS, "math,math", "names no two graders"),
        (ROWS, "task,maths", "--graders names 'maths'; use two of task, math, math_verify"),
    ],
)
def test_what_is_wrong_with_a_file_or_a_name_is_one_line(file, rows, graders, words):
    with pytest.raises(InputError, match=words):
        list(audit(file(rows), graders, [ARITHMETIC], **POOL))


def test_metadata_that_a_verifier_misses_is_named(file):
    countdown = pytest.importorskip("iiblpo_jax.data.countdown").make_countdown(seed=0, train_size=1, heldout_size=1)
    with pytest.raises(InputError, match="no metadata 'numbers'"):
        list(audit(file(ROWS), "task,math", [countdown], **POOL))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.jsonl does not exist"):
        read_pairs(tmp_path / "absent.jsonl")
    with pytest.raises(InputError, match="no pairs; pass --pairs=FILE"):
        read_pairs("")


def test_the_command(file):
    path = file(ROWS[2:])
    command = [sys.executable, "-m", "iiblpo_jax.rewards.audit", "--config=configs/arithmetic.py", f"--pairs={path}"]
    command += ["--config.data.verifier_timeout=20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout.splitlines()[0]
        == "row 1: gold '14', answer 'so it is $\\\\boxed{14.0}$': task 0, math_verify 1; judged right"
    )
