"""reasoning-gym answers, graded by the package's own `score_answer`. It may give partial credit, in [0, 1].

Some of those scorers hand the answer to `eval`, or to SymPy's `parse_expr`, which does. An answer to such a task is
graded only if it is a plain expression, or a plain literal: the tables below say which.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from typing import Any

from iiblpo_jax.rewards.gym_repairs import REPAIRS
from iiblpo_jax.rewards.verifier import Job, Problem, Verifier

GRADER, BUILDER = f"{__name__}:grade", f"{__name__}:build"
MAX_CHARS = 16_384  # the longest gold answers (boards, schedules) have a few thousand

# Scorers that evaluate the answer. A test reads the installed package and fails when there are others.
EXPRESSIONS = frozenset(
    "countdown intermediate_integration polynomial_multiplication puzzle24 simple_integration".split()
)
LITERALS = frozenset("binary_matrix n_queens spiral_matrix string_insertion".split())
EXPRESSION = re.compile(r"[A-Za-z0-9 \t\n.,+\-*/^()]*")
ATTRIBUTE = re.compile(r"\.\s*[A-Za-z]")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9]*")
VARIABLE = re.compile(r"[A-Za-z][0-9]?")
FUNCTIONS = frozenset(
    """
    Abs acos acosh acot asin asinh atan atanh cos cosh cot coth csc exp ln log pi sec sin sinh sqrt tan tanh
    """.split()
)


@dataclasses.dataclass(frozen=True)
class Gym(Verifier):
    """Asks the generator; `metadata` of a problem has its `dataset`, `options` and `entry`.

    Attributes:
      made: (dataset, options as sorted JSON) of the generators that a worker builds when it starts. Some take seconds,
        which the first answers would be charged with.
    """

    made: tuple[tuple[str, str], ...] = ()

    graders = (GRADER,)

    @property
    def preparations(self) -> tuple[Job, ...]:
        """The generators are built."""
        return tuple(Job(BUILDER, generator) for generator in self.made)

    def grade(self, problem: Problem, response: str) -> float | Job:
        """0 without a tagged answer, otherwise a job."""
        answer, made = extract(response), problem.metadata
        if answer is None:
            return 0.0
        return Job(GRADER, (made["dataset"], as_json(made["options"]), made["entry"], answer))

    def answer(self, response: str) -> str | None:
        """See `extract`."""
        return extract(response)

    def reads(self, gold: str) -> bool:
        """Always: the gold answers are the generator's own, and some have none, because many are right."""
        return True


def extract(response: str) -> str | None:
    """Content of the last closed `<answer>...</answer>`, or None: no answer scores 0."""
    head, closed, _ = response.rpartition("</answer>")
    _, opened, answer = head.rpartition("<answer>")
    return answer.strip() if closed and opened and len(answer) <= MAX_CHARS else None


def grade(dataset: str, options: str, entry: dict[str, Any], answer: str) -> float:
    """The generator's own score of `answer` for `entry`; 0 for an answer that it would run as a program.

    Args:
      dataset: name of the reasoning-gym task.
      options: its configuration, as sorted JSON.
      entry: question, answer and metadata, as generated.
      answer: the response's answer.
    """
    source = entry["metadata"].get("source_dataset", dataset)  # the member of a composite task
    if not (harmless(dataset, answer) and harmless(source, answer)):
        return 0.0
    repaired = REPAIRS[source](answer, entry) if source in REPAIRS else None
    return scored(build(dataset, options), answer, entry) if repaired is None else repaired


def scored(generator, answer: str, entry: dict[str, Any]) -> float:
    """`score_answer` of the package, 0 where that stumbles over the answer, as some do over one in another format.

    Raises:
      whatever it stumbles over with the gold answer too: then it is not the answer's fault.
    """
    try:
        return float(generator.score_answer(answer, entry))
    except Exception:
        generator.score_answer(entry["answer"], entry)
        return 0.0


def harmless(dataset: str, answer: str) -> bool:
    """Whether the task's scorer may be given the answer: it does not evaluate it, or there is nothing to call in it."""
    if dataset in EXPRESSIONS:
        plain = EXPRESSION.fullmatch(answer) and not ATTRIBUTE.search(answer)
        return bool(plain) and all(name in FUNCTIONS or VARIABLE.fullmatch(name) for name in NAME.findall(answer))
    return dataset not in LITERALS or "(" not in answer


def warm_up() -> None:
    """Imports the package, so that the first graded answer is not charged for it."""
    import reasoning_gym  # noqa: F401


@functools.cache
def build(dataset: str, options: str):
    """The generator of a task, for its `score_answer`; `options` as sorted JSON."""
    return create(dataset, json.loads(options), seed=0, size=1)


def create(dataset: str, options: Mapping[str, Any], *, seed: int, size: int):
    """The generator `dataset` with its options, which are plain JSON.

    Those of `composite` are `datasets`, a list of members: `{"name": ..., "weight": 1.0, "config": {...}}`. Members get
    their seeds and sizes from the composite.

    Raises:
      whatever the package does about a name or an option, and ValueError for a member that is none.
    """
    import reasoning_gym

    arguments = dict(options)
    if dataset == "composite":
        arguments["datasets"] = [_member(member) for member in arguments.get("datasets") or ()]
    return reasoning_gym.create_dataset(dataset, seed=seed, size=size, **arguments)


def as_json(options: Mapping[str, Any]) -> str:
    """Options of a task as sorted JSON: what workers and caches know a generator by."""
    return json.dumps(options, sort_keys=True, default=dict)  # a ConfigDict is a mapping that JSON does not know


def _member(member: Any):
    from reasoning_gym.composite import DatasetSpec

    if not isinstance(member, Mapping) or "name" not in member or not set(member) <= {"name", "weight", "config"}:
        raise ValueError(f"{member!r} is no member of a composite; give name, weight and config")
    config = dict(member.get("config", {}))
    if fixed := {"seed", "size"} & set(config):
        raise ValueError(f"member {member['name']} sets {', '.join(sorted(fixed))}, which the composite gives it")
    return DatasetSpec(name=member["name"], weight=member.get("weight", 1.0), config=config)
