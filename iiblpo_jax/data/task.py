"""A task: problems with gold answers, how they are asked, and how a response is read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.environments.own import is_environment
from iiblpo_jax.rewards.math import Math
from iiblpo_jax.rewards.own import Own
from iiblpo_jax.rewards.verifier import Problem, Verifier

SYSTEM = "You are a helpful assistant."
# The request that ends every prompt of the released code: reason, then box the answer.
BOXED_TEMPLATE = "{question}\nPlease reason step by step, and put your final answer within \\boxed{}."
BOXED_CUE = "\n\nThe final answer is \\boxed{"
BOXED_MARKER = "\\boxed{"
HINTED = "{turn}\n\nHint: {hint}"
HINT_PLACES = re.compile(r"(\{turn\}|\{hint\})")  # of a Task.hinted
SHORT_HINTED = "{hint};{turn}"  # where the vocabulary has no words


def same_text(response: str) -> str | None:
    """The plan of a response where nothing is known of its structure: its text, blanks made alike; None if empty."""
    return " ".join(response.split()) or None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """Problems that are asked and graded the same way.

    Attributes:
      name: the registry name.
      train, heldout: disjoint by question. `train` is empty for an evaluation-only task.
      verifier: grades responses, reads gold answers, names the answer of a response; the kinds are in rewards/. Or any
        callable of (problems, responses) that returns a reward each, see rewards/own.py: it is made one.
      cue: text that, appended to a reasoning, elicits the answer: log p(answer | question, reasoning, cue).
      closing: what follows the answer after the cue (`}` closes the box).
      marker: where the final answer starts in a response; a blank when the response is nothing but the answer.
      system: system message of the chat form, or None.
      template: the user's turn; `{question}` is replaced by the question, every other brace stands for itself.
      chat: True: rendered with the tokenizer's chat template when it has one.
      hinted: the user's turn with a hint; `{turn}` is replaced by what `template` makes, `{hint}` by the hint.
      template_args: what the chat template is told besides, such as `{"enable_thinking": False}`.
      plan: names the kind of solution that a response is, None if it is malformed: responses with the same name
        count as one when distinct solutions are counted.
      environment: answers the policy's turns where turns.most allows any: of environments/, or any object with
        `turn_end`, `reset(problem)` and `step(state, text)`, see environments/own.py; None = nobody does.

    Raises:
      InputError: `verifier` or `environment` is something else.
    """

    name: str
    train: Sequence[Problem]
    heldout: Sequence[Problem]
    verifier: Verifier
    cue: str
    closing: str = ""
    marker: str
    system: str | None = None
    template: str = "{question}"
    chat: bool = False
    hinted: str = HINTED
    template_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    plan: Callable[[str], str | None] = same_text
    environment: Any = None

    def __post_init__(self):
        if callable(self.verifier) and not isinstance(self.verifier, type | Verifier):
            own = Own(function=self.verifier, task=self.name, marker=self.marker, closing=self.closing)
            object.__setattr__(self, "verifier", own)
        if not isinstance(self.verifier, Verifier):
            raise InputError(
                f"task {self.name!r} has the verifier {self.verifier!r}; use a function of (problems, responses), "
                "or an object of iiblpo_jax.rewards, such as exact.Exact(marker='#') or math.Math()"
            )
        if self.environment is not None and not is_environment(self.environment):
            raise InputError(
                f"task {self.name!r} has the environment {self.environment!r}; use an object with turn_end, "
                "reset(problem) and step(state, text), such as iiblpo_jax.environments.calculator.Calculator()"
            )

    def answer_text(self, problem: Problem) -> str:
        """The text that completes the cue with the gold answer: cue + answer_text is a final answer."""
        return problem.answer + self.closing

    def answer_hint(self, problem: Problem) -> str:
        """The gold answer as a hint, as a response would give it; empty where the problem has none."""
        return self.cue.strip() + self.answer_text(problem) if problem.answer else ""


def first_steps(problem: Problem) -> str:
    """The first half of the steps of a problem's solution, at least one and never the last one; empty without two.

    A step ends in a semicolon, a full stop or a line.
    """
    steps = [step for step in re.split(r"(?<=[;\n])|(?<=\.\s)", problem.rationale or "") if step]
    return "".join(steps[: len(steps) // 2])


def boxed_task(name: str, train: Sequence[Problem], heldout: Sequence[Problem]) -> Task:
    """A competition-mathematics task: the paper's chat prompt, the answer in a box, graded by math-verify."""
    return Task(
        name=name,
        train=train,
        heldout=heldout,
        verifier=Math(),
        cue=BOXED_CUE,
        closing="}",
        marker=BOXED_MARKER,
        system=SYSTEM,
        template=BOXED_TEMPLATE,
        chat=True,
    )


def answer_ids(task: Task, problem: Problem, tokenizer) -> list[int]:
    """Token ids of what completes the task's cue with the gold answer; control tokens in it are text."""
    return tokenizer.encode(tokenizer.quote(task.answer_text(problem)))


def render(task: Task, problem: Problem, tokenizer, *, hint: str = "") -> list[int]:
    """Prompt ids of a problem, ready for the first response token; with a hint, where there is one.

    The chat template with its generation prompt where the task asks for one and the tokenizer has one; otherwise
    the plain template, followed for a chat task by a blank line. Control tokens that the question only speaks of are
    text; those of the task's own template and system message are meant.

    Raises:
      InputError: the chat template refuses the task, or there is none for its template_args.
    """
    turns = conversation(task, problem, quote=tokenizer.quote, hint=hint)
    if not task.chat or (tokenizer.chat_template is None and not task.template_args):
        text = "\n\n".join(turn["content"] for turn in turns)
        return tokenizer.encode(f"{text}\n\n" if task.chat else text, add_special=True)
    has_system = not task.system or turns[0]["role"] == "system"
    messages = turns if has_system else [{"role": "system", "content": task.system}, *turns]
    return tokenizer.render_chat(messages, task.template_args)


def conversation(task: Task, problem: Problem, *, quote: Callable[[str], str], hint: str = "") -> list[dict[str, str]]:
    """The turns that a problem is asked with, the task's system message aside: the last one is in its template.

    `quote` is applied to every text of the problem, and to the hint; without one the turn is as it is.
    """
    turns = problem.messages or ({"role": "user", "content": problem.question},)
    *before, last = [{**turn, "content": quote(turn["content"])} for turn in turns]
    turn = task.template.replace("{question}", last["content"])
    if hint:
        turn = "".join({"{turn}": turn, "{hint}": quote(hint)}.get(x, x) for x in HINT_PLACES.split(task.hinted))
    return [*before, {**last, "content": turn}]
