"""Rows of your own, JSON Lines or Parquet, without a line of Python: the task `jsonl`.

    --config.task.name=jsonl --config.task.data_dir=my_rows.jsonl --config.task.options.question=problem
    --config.task.options.answer=reward_model.ground_truth --config.task.options.verifier=my_reward.py:grade

A column is named by its path: `extra_info.answer` is a field of a struct, `messages.0.content` that of the first entry
of a list; the case of the first name does not matter. Which rows are held out is said by the paths of the files, as for
the tasks of rows.py.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from iiblpo_jax.common import own_code
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data import competition, files, gold
from iiblpo_jax.data.own import with_origin
from iiblpo_jax.data.rows import MAX_QUESTION, BadGold
from iiblpo_jax.data.task import BOXED_CUE, BOXED_MARKER, BOXED_TEMPLATE, SYSTEM, Task
from iiblpo_jax.rewards.exact import Exact
from iiblpo_jax.rewards.math import Math
from iiblpo_jax.rewards.own import Own
from iiblpo_jax.rewards.verifier import Problem, Verifier

NAME = "jsonl"
QUESTIONS = ("question", "problem", "prompt")  # columns that are looked for where none is named
ANSWERS = ("answer", "gold", "ground_truth", "reward_model.ground_truth")
ROLES = ("system", "user", "assistant")
SKIP = "correct or remove that row, or leave such rows out with the task option skip_bad_gold=True"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asking:
    """How a task asks, and what ends an answer: the defaults of a kind of verifier. See Task."""

    template: str = "{question}"
    system: str | None = None
    marker: str = BOXED_MARKER
    cue: str = BOXED_CUE
    closing: str = "}"


ASKING = {
    "math": Asking(template=BOXED_TEMPLATE, system=SYSTEM),
    "exact": Asking(
        template="{question}\nGive the final answer on a line of its own, after ####.",
        marker="####",
        cue="\n#### ",
        closing="",
    ),
}


def make_jsonl(
    name: str = NAME,
    *,
    data_dir: str | Path | None,
    question: str | None = None,
    answer: str | None = None,
    messages: str | None = None,
    verifier: str = "math",
    template: str | None = None,
    system: str | None = None,
    chat: bool = True,
    marker: str | None = None,
    cue: str | None = None,
    closing: str | None = None,
    files_glob: str | None = None,
    heldout_size: int = 256,
    skip_bad_gold: bool = False,
) -> Task:
    """Problems from rows of any layout. `metadata` of a problem is its whole row, and `place`, its file and number.

    Args:
      name: of the task, `jsonl` or `jsonl:ANYTHING`.
      data_dir: a file, or a directory that is searched recursively.
      question: column of the question, or of chat messages; None = question, problem or prompt.
      answer: column of the gold answer; None = answer, gold, ground_truth or reward_model.ground_truth. A verifier of
        your own can do without one.
      messages: column of chat messages, in place of a question: a list of dicts of `role` and `content`, which is a
        text or a list of parts of type text. Assistant's turns at its end are a gold response, not asked.
      verifier: `math` (the answer in a box, by math-verify), `exact` (the very text behind the marker), or
        `file.py:name` or `package.module:name`, a verifier of your own (rewards/own.py).
      template: the user's last turn, `{question}` in it; None = as the verifier needs it.
      system: system message of conversations that have none; empty = none, None = the verifier's.
      chat: with the tokenizer's chat template, where it has one.
      marker, cue, closing: see Task; None = the verifier's: `\\boxed{` ... `}`, or `####`; with a marker the cue is a
        new line and the marker, and nothing closes it.
      files_glob, heldout_size, skip_bad_gold: see `competition.make_competition`.

    Raises:
      InputError: nothing to read, an unknown verifier, a column that is missing or holds something else, a gold answer
        that the verifier cannot read; the message has the file, the row and the mend.
    """
    asking = _asking(name, verifier, template=template, system=system, marker=marker, cue=cue, closing=closing)
    judge = _verifier(name, verifier, asking)
    layout = _Layout(name=name, question=question, answer=answer, messages=messages, verifier=judge)
    paths = files.dataset_files(name, data_dir, pattern=files_glob)
    train, heldout = (
        competition.unique(_problems(layout, paths[split]), skip_bad_gold=skip_bad_gold)
        for split in ("train", "heldout")
    )
    if not (train or heldout):
        raise InputError(f"task {name!r}: the files under {data_dir} hold no rows; add some, one JSON object a line")
    train, heldout = competition.split(train, heldout, heldout_size=heldout_size)
    return Task(name=name, train=train, heldout=heldout, verifier=judge, chat=chat, **dataclasses.asdict(asking))


def _asking(name: str, verifier: str, *, marker: str | None, **given: str | None) -> Asking:
    """How the task asks: what is given, the rest as the verifier has it."""
    asking = ASKING.get(verifier, Asking())
    if marker is not None:  # what belongs to another marker does not belong to this one
        asking = dataclasses.replace(asking, marker=marker, cue=f"\n{marker}", closing="")
    asking = dataclasses.replace(asking, **{key: value for key, value in given.items() if value is not None})
    if "{question}" not in asking.template:
        raise InputError(f"task {name!r}: the template {asking.template[:60]!r} has no {{question}} in it; add it")
    return dataclasses.replace(asking, system=asking.system or None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where rows keep things."""

    name: str
    question: str | None
    answer: str | None
    messages: str | None
    verifier: Verifier

    def problem(self, place: str, id: str, row: Mapping[str, Any]) -> Problem | BadGold:
        """The problem of a row, or its unreadable gold answer.

        Raises:
          InputError: a missing column, or one that holds something else than it should.
        """
        asked = self._column(row, [self.messages or self.question or ""], QUESTIONS, place)
        turns, rationale = _conversation(asked, place)
        text = _transcript([turn for turn in turns if turn["role"] != "system"])
        if not text or len(text) > MAX_QUESTION:
            raise InputError(f"{place}: the question has {len(text)} characters; correct or remove that row")
        needed = not isinstance(self.verifier, Own) or self.answer is not None
        answer = _text(self._column(row, [self.answer or ""], ANSWERS, place, needed=needed))
        if isinstance(self.verifier, Math):
            answer = gold.bare(answer)
        if not gold.readable(self.verifier, answer):
            return BadGold(f"{place}: gold answer {answer[:60]!r} does not parse; {SKIP}")
        return Problem(
            id=id,
            question=text,
            answer=answer,
            rationale=rationale,
            task=self.name,
            messages=tuple(turns) if len(turns) > 1 else (),
            metadata={**row, "place": place},
        )

    def _column(
        self, row: Mapping[str, Any], wanted: Sequence[str], usual: Sequence[str], place: str, *, needed: bool = True
    ) -> Any:
        names = list(filter(None, wanted)) or usual
        for name in names:
            found = _at(row, name)
            if found is not None:
                return found
        if not needed:
            return None
        listed = ", ".join(sorted(row)) or "none"
        column = names[0].split(".")[0].lower()
        near = difflib.get_close_matches(column, list(row), n=1) if wanted[0] and column not in row else []
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(
            f"{place}: no value in column {' or '.join(names)}{hint}; it has {listed}; name the right one with a task "
            "option (question, answer, messages), or remove that row"
        )


def _verifier(name: str, verifier: str, asking: Asking) -> Verifier:
    if verifier == "math":
        return Math()
    if verifier == "exact":
        return Exact(marker=asking.marker)
    if ":" in verifier:
        reference, key = own_code.absolute(verifier, Path.cwd()), "task.options.verifier"
        function = own_code.load(reference, key=key)
        if not callable(function) or isinstance(function, type):
            raise InputError(
                f"{key} = {verifier!r} is a {type(function).__name__}; name a function of problems, responses"
            )
        own = Own(function=function, task=name, marker=asking.marker, closing=asking.closing)
        return with_origin(own, reference, key, None)
    near = difflib.get_close_matches(verifier, ASKING, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise InputError(
        f"task {name!r} has no verifier {verifier!r}{hint}; use {', '.join(ASKING)}, or your own as {own_code.FORM}"
    )


def _problems(layout: _Layout, paths: Sequence[Path]) -> Iterator[Problem | BadGold]:
    for path in paths:
        for place, row in files.read_rows(path):
            yield layout.problem(place, f"{layout.name}/{path.parent.name}/{path.name}:{place.rpartition(' ')[2]}", row)


def _at(row: Mapping[str, Any], name: str) -> Any:
    """The value at a dotted path, None where there is none; a column may have dots in its own name."""
    if name.lower() in row:
        return row[name.lower()]
    value: Any = row
    for depth, key in enumerate(name.split(".")):
        if isinstance(value, list | tuple) and key.isdigit():
            value = value[int(key)] if int(key) < len(value) else None
        else:
            value = value.get(key if depth else key.lower()) if isinstance(value, Mapping) else None
    return value


def _text(value: Any) -> str:
    """A gold answer as text; several are one, and 3.0 is 3."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)


def _conversation(value: Any, place: str) -> tuple[list[dict[str, str]], str | None]:
    """The turns up to the user's last one, and what the assistant said after that."""
    if not isinstance(value, list | tuple):
        return [{"role": "user", "content": str(value).strip()}], None
    turns = [_turn(turn, place) for turn in value]
    said = []
    while turns and turns[-1]["role"] == "assistant":
        said.append(turns.pop()["content"])
    if not turns or turns[-1]["role"] != "user":
        raise InputError(f"{place}: no user's turn to answer among the messages; correct or remove that row")
    return turns, "\n\n".join(reversed(said)) or None


def _turn(turn: Any, place: str) -> dict[str, str]:
    if not isinstance(turn, Mapping) or turn.get("role") not in ROLES:
        raise InputError(
            f"{place}: {str(turn)[:80]!r} is no message; write an object with role ({', '.join(ROLES)}) and content"
        )
    return {"role": turn["role"], "content": _content(turn.get("content"), place).strip()}


def _content(content: Any, place: str) -> str:
    """A message's text, which may come in parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list | tuple) else [content]
    texts = [
        part if isinstance(part, str) else part.get("text") if isinstance(part, Mapping) else None for part in parts
    ]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{place}: a message's content is no text ({str(content)[:80]}); only text can be asked")
    return "".join(text for text in texts if text is not None)


def _transcript(turns: Sequence[Mapping[str, str]]) -> str:
    """Several turns as one text; of a single one its own."""
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)
