"""Where two graders disagree on a file of answers, before a run is paid for by one of them.

    python -m iiblpo_jax.rewards.audit --config=configs/qwen2_5_7b_math_dapo.py --pairs=FILE.jsonl
    python -m iiblpo_jax.rewards.audit --config=configs/arithmetic.py --pairs=FILE.jsonl --graders=math,math_verify

A line of the file is a JSON object with `gold` and `response` (or `text`: the files in rollouts/ of a run will do). It
may have `task`, which a config with task.mix needs, `question` and `metadata` for verifiers that read them, and
`correct`, what somebody else thinks of it: both graders are then held against that too. Graders:

    task         the verifier of the config's task
    math         our verifier of mathematics
    math_verify  math-verify on the whole response, as other stacks call it
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.common.jsonl import read_jsonl
from iiblpo_jax.rewards.bare_math import BareMath
from iiblpo_jax.rewards.math import Math
from iiblpo_jax.rewards.scorer import CORRECT, Grades, Scorer
from iiblpo_jax.rewards.verifier import Problem, Verified, Verifier

TASK = "task"
KINDS: dict[str, Verifier] = {"math": Math(), "math_verify": BareMath()}
SHOWN = 80  # characters of a gold answer or a response in the listing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
    """One row: `name` says where it is, `task` and `correct` are None where it does not say."""

    name: str
    gold: str
    response: str
    question: str
    task: str | None
    metadata: dict[str, Any]
    correct: bool | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grader:
    """A verifier with the name that problems know it by."""

    name: str
    verifier: Verifier


def read_pairs(path: Path | str) -> list[Pair]:
    """The rows of a file.

    Raises:
      InputError: no file, no rows, or a row without gold answer or response.
    """
    if not path:
        raise InputError("no pairs; pass --pairs=FILE, JSON Lines with gold and response")
    if not Path(path).is_file():
        raise InputError(f"--pairs={path} does not exist; give a file of JSON Lines with gold and response")
    pairs = []
    for number, row in enumerate(read_jsonl(Path(path)), 1):
        gold, response = row.get("gold"), row.get("response", row.get("text"))
        if not isinstance(gold, str) or not isinstance(response, str):
            raise InputError(f"{path}: row {number} has no text in `gold` or in `response`; it has {', '.join(row)}")
        correct = row.get("correct")
        pairs.append(
            Pair(
                name=f"row {number}",
                gold=gold,
                response=response,
                question=str(row.get("question", "")),
                task=row.get("task"),
                metadata=row.get("metadata") or {},
                correct=None if correct is None else bool(correct),
            )
        )
    if not pairs:
        raise InputError(f"{path} has no rows; give a file of JSON Lines with gold and response")
    return pairs


def verifiers(name: str, tasks: Sequence[Verified], pairs: Sequence[Pair]) -> list[Verifier]:
    """The verifier of each pair where the grader is called `name`.

    Raises:
      InputError: no such grader, or a pair that does not say which of several tasks it belongs to.
    """
    if name in KINDS:
        return [KINDS[name]] * len(pairs)
    if name != TASK:
        raise InputError(f"--graders names {name!r}; use two of {', '.join([TASK, *KINDS])}")
    by_name = {task.name: task.verifier for task in tasks}
    if len(tasks) == 1:
        return [tasks[0].verifier] * len(pairs)
    for pair in pairs:
        if pair.task not in by_name:
            raise InputError(f"{pair.name} has task {pair.task!r}; the config has {', '.join(by_name)}")
    return [by_name[str(pair.task)] for pair in pairs]


def grades(pairs: Sequence[Pair], by: Sequence[Verifier], *, workers: int, timeout_s: float) -> Grades:
    """What is known of each pair by its verifier.

    Raises:
      InputError: a verifier reads metadata that a row does not have.
    """
    names: Mapping[Verifier, str] = {verifier: str(number) for number, verifier in enumerate(dict.fromkeys(by))}
    problems = [
        Problem(
            id=pair.name,
            question=pair.question,
            answer=pair.gold,
            task=names[verifier],
            metadata=pair.metadata,
        )
        for pair, verifier in zip(pairs, by, strict=True)
    ]
    graders = [Grader(name=name, verifier=verifier) for verifier, name in names.items()]
    with Scorer(graders, workers=workers, timeout_s=timeout_s) as scorer:
        try:
            return scorer.score(problems, [pair.response for pair in pairs])
        except KeyError as missing:
            raise InputError(
                f"a row has no metadata {missing}, which the verifier of its task reads; add it to the file"
            ) from missing


def report(pairs: Sequence[Pair], by: Mapping[str, tuple[Sequence[Verifier], Grades]]) -> Iterator[str]:
    """The lines that are printed: every pair on which two graders disagree, then how often they do.

    Args:
      pairs: N of them.
      by: name of each of two graders -> its verifiers, and what they gave.
    """
    (one, (verifiers_N, first)), (other, (_, second)) = by.items()
    first_N, second_N = first.rewards, second.rewards
    right_N, right_too_N = first_N >= CORRECT, second_N >= CORRECT
    for n in np.flatnonzero((right_N != right_too_N) | (abs(first_N - second_N) > 1 - CORRECT)):
        pair = pairs[int(n)]
        answer = verifiers_N[int(n)].answer(pair.response) or pair.response
        judged = {None: "", True: "; judged right", False: "; judged wrong"}[pair.correct]
        yield (
            f"{pair.name}: gold {_short(pair.gold)}, answer {_short(answer)}: {one} {first_N[n]:g}, {other} "
            f"{second_N[n]:g}{judged}"
        )
    both, alone, alone_too = (
        int(x.sum()) for x in (right_N & right_too_N, right_N & ~right_too_N, right_too_N & ~right_N)
    )
    yield (
        f"{len(pairs)} pairs: right by both {both}, by {one} alone {alone}, by {other} alone {alone_too}, by none "
        f"{len(pairs) - both - alone - alone_too}"
    )
    for name, found in ((one, first), (other, second)):
        if ended := ", ".join(f"{n} {what}" for what, n in found.counts.items() if n):
            yield f"{name} came to no end with some: {ended}, which count as wrong; raise data.verifier_timeout"
    judged_n = [n for n, pair in enumerate(pairs) if pair.correct is not None]
    for name, right in ((one, right_N), (other, right_too_N)) if judged_n else ():
        strict = sum(bool(pairs[n].correct) and not right[n] for n in judged_n)
        lenient = sum(bool(right[n]) and not pairs[n].correct for n in judged_n)
        yield (
            f"against `correct` of {len(judged_n)} rows: {name} is wrong on {strict + lenient} "
            f"({(strict + lenient) / len(judged_n):.1%}): refuses {strict} right answers, pays {lenient} wrong ones"
        )


def _short(text: str) -> str:
    return repr(text if len(text) <= SHOWN else "..." + text[-SHOWN:])


def audit(path: str, names: str, tasks: Sequence[Verified], *, workers: int, timeout_s: float) -> Iterator[str]:
    """`report` of a file.

    Args:
      path: of the pairs.
      names: of two graders, with a comma between them.
      tasks: of the config; none are needed where no grader is `task`.
      workers, timeout_s: of the pool.

    Raises:
      InputError: whatever is wrong with the file or the names.
    """
    wanted = names.split(",")
    if len(wanted) != 2 or wanted[0] == wanted[1]:
        raise InputError(f"--graders={names} names no two graders; use two of {', '.join([TASK, *KINDS])}")
    pairs = read_pairs(path)
    by = {name: verifiers(name, tasks, pairs) for name in wanted}
    yield from report(
        pairs, {name: (each, grades(pairs, each, workers=workers, timeout_s=timeout_s)) for name, each in by.items()}
    )


if __name__ == "__main__":  # a program stands above the house: docs/architecture.md
    from absl import flags

    from iiblpo_jax import cli
    from iiblpo_jax.data.registry import make_tasks

    PAIRS = flags.DEFINE_string("pairs", "", "File of JSON Lines with gold and response.")
    GRADERS = flags.DEFINE_string("graders", f"{TASK},math_verify", "The two graders, with a comma between them.")

    def main(config, _) -> None:
        """Prints the report."""
        weighted = make_tasks(config.task, seed=config.data.seed) if TASK in GRADERS.value.split(",") else []
        pool = {"workers": config.data.verifiers, "timeout_s": config.data.verifier_timeout}
        for line in audit(PAIRS.value, GRADERS.value, [task for task, _ in weighted], **pool):
            print(line)

    cli.run(main, needs_workdir=False)
