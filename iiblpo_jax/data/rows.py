"""How the rows of the mathematics datasets become problems.

Columns, first match wins, case ignored; `a.b` is a field of a struct:

| task        | files seen in the wild                                  | question                | gold answer                                               | rationale  |
|-------------|---------------------------------------------------------|-------------------------|-----------------------------------------------------------|------------|
| `gsm8k`     | openai/gsm8k (main), grade-school-math JSONL            | question                | answer, after `####`                                      | answer, before it |
| `math`      | EleutherAI/hendrycks_math, nlile/hendrycks-MATH-benchmark, AI-MO/NuminaMath-1.5 | problem, question | answer, else the last `\\boxed{}` of solution | solution |
| `math500`   | HuggingFaceH4/MATH-500                                  | problem, question       | answer, else the last `\\boxed{}` of solution             | solution   |
| `dapo_math` | BytedTsinghua-SIA/DAPO-Math-17k, open-r1/DAPO-Math-17k-Processed, Skywork/Skywork-OR1-RL-Data (its math files), plain JSONL | prompt (messages or text), problem, question | reward_model.ground_truth, answer, ground_truth, solution | none |
| `aime24`    | HuggingFaceH4/aime_2024, Maxwell-Jia/AIME_2024 (capitals), math-ai/aime24, BytedTsinghua-SIA/AIME-2024 | problem, question | answer, else the last `\\boxed{}` of solution | solution |
| `aime25`    | math-ai/aime25, opencompass/AIME2025, yentinglin/aime_2025 | problem, question    | answer, else the last `\\boxed{}` of solution             | solution   |
| `olympiad`  | Hothan/OlympiadBench (OE_TO_maths_en_COMP when present), math-ai/olympiadbench | question, problem (after context) | final_answer (list), answer        | solution (list) |

All of them are also read in verl's layout, where nothing that stands above is there: the question in `prompt`
(messages), the answer in `reward_model.ground_truth`; a GSM8K row keeps its own in `extra_info`. A gold answer may be a
list, or a list written as JSON (`["5"]`). Rows whose answer is the word `proof` or `notfound` have none, and are left
out.
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data import gold
from iiblpo_jax.data.task import BOXED_CUE
from iiblpo_jax.rewards.math import Math, last_boxed
from iiblpo_jax.rewards.verifier import Problem

# DAPO-Math-17k wraps every question in these; the task's own template replaces them.
DAPO_PREFIX = re.compile(
    r"^Solve the following math problem step by step\. The last line of your response .*?\n\n", re.S
)
DAPO_SUFFIX = re.compile(r"\n\nRemember to put your answer on its own line after \"Answer:\"\.\s*$")
GSM8K_CALCULATOR = re.compile(r"<<[^<>]*>>")
MAX_QUESTION = 1 << 20  # characters; also keeps the patterns above from being fed a book
NO_ANSWERS = ("proof", "notfound")  # what NuminaMath-1.5 writes where a problem has no answer, or none was found
DETAILS = ("level", "type", "subject", "subfield", "unit", "answer_type", "data_source", "unique_id", "year")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """Where a dataset keeps things; see the table above.

    Attributes:
      question, answer, solution: column names, first match wins.
      numeric: every gold answer is a plain number; anything else is an error of the file.
      evaluation: no training split.
      preferred: a directory or file name that is taken alone when it exists.
    """

    question: tuple[str, ...] = ("problem", "question", "prompt")
    answer: tuple[str, ...] = ("answer", "reward_model.ground_truth")
    solution: tuple[str, ...] = ("solution",)
    numeric: bool = False
    evaluation: bool = False
    preferred: str | None = None


FORMATS = {
    "gsm8k": Format(
        question=("question", "extra_info.question"),
        answer=("answer", "extra_info.answer"),
        numeric=True,
        solution=(),
    ),
    "math": Format(),
    "math500": Format(evaluation=True),
    "dapo_math": Format(
        question=("prompt", "problem", "question"),
        answer=("reward_model.ground_truth", "answer", "ground_truth", "solution"),
        solution=(),
    ),
    "aime24": Format(numeric=True, evaluation=True),
    "aime25": Format(numeric=True, evaluation=True),
    "olympiad": Format(
        question=("question", "problem", "prompt"),
        answer=("final_answer", "answer", "reward_model.ground_truth"),
        evaluation=True,
        preferred="OE_TO_maths_en_COMP",
    ),
}


class BadGold(InputError):
    """A row whose gold answer does not parse: skipped when the user says so."""


class NoGold(BadGold):
    """A row that says itself that it has no gold answer: always skipped."""


def problem_of(name: str, form: Format, place: str, id: str, row: dict[str, Any]) -> Problem | BadGold:
    """The problem in a row with lower-case keys, or (returned, for the caller to decide) its unreadable gold answer.

    Raises:
      InputError: a missing column, or an empty question.
    """
    question = _question(_column(row, form.question, place), place)
    try:
        if name == "gsm8k":
            return gsm8k_row(question, str(_column(row, form.answer, place)), place=place, id=id)
        answer = _gold(form, row, place)
    except BadGold as error:
        return error
    if row.get("context"):
        question = f"{str(row['context']).strip()}\n{question}"
    details = {key: row[key] for key in DETAILS if row.get(key) is not None}
    return Problem(
        id=id,
        question=question,
        answer=answer,
        rationale=_text(first(row, form.solution)) or None,
        task=name,
        metadata={"place": place, **details},
    )


def gsm8k_row(question: str, answer: str, *, place: str, id: str) -> Problem:
    """A GSM8K row: the gold number stands after `####`, the worked steps before it, calculator marks removed."""
    steps, mark, final = answer.rpartition("####")
    value = gold.number(final)
    if not mark or value is None:
        shown = repr(final.strip()[:60]) if mark else "without `####`"
        raise BadGold(f"{place}: gold answer {shown} does not parse as a number; {_mend()}")
    rationale = f"{GSM8K_CALCULATOR.sub('', steps).strip()}{BOXED_CUE}{value}}}"
    return Problem(
        id=id, question=question.strip(), answer=value, rationale=rationale, task="gsm8k", metadata={"place": place}
    )


def _question(value: Any, place: str) -> str:
    if isinstance(value, list):  # chat messages: the user's turn is the question
        turns = [turn.get("content") for turn in value if isinstance(turn, dict) and turn.get("role") == "user"]
        value = _joined(turns[-1]) if turns else ""
    text = str(value or "").strip()
    if len(text) > MAX_QUESTION:
        raise InputError(f"{place}: the question has {len(text)} characters; remove that row")
    text = DAPO_SUFFIX.sub("", DAPO_PREFIX.sub("", text)).strip()
    if not text:
        raise InputError(f"{place}: the question is empty; remove that row")
    return text


def _joined(content: Any) -> Any:
    """A message's text, which may come in parts: `[{"type": "text", "text": ...}]`."""
    parts = [part.get("text") for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    return "".join(map(str, filter(None, parts))) if parts else content


def _gold(form: Format, row: dict[str, Any], place: str) -> str:
    value = first(row, form.answer)
    if value is None and (solution := _text(first(row, form.solution))):
        value = last_boxed(solution)
        if value is None:
            raise BadGold(f"{place}: the solution has no \\boxed{{}} answer; {_mend()}")
    if value is None:
        _column(row, (*form.answer, *form.solution), place)  # raises when the columns are absent
    parts = [gold.bare(_scalar(part)) for part in _listed(value)]
    answer = ", ".join(part for part in parts if part)
    if answer.lower() in NO_ANSWERS:
        raise NoGold(f"{place}: gold answer {answer!r} is none; {_mend()}")
    if form.numeric:
        answer = gold.number(answer) or ""
    if not gold.readable(Math(), answer):
        raise BadGold(f"{place}: gold answer {str(value)[:60]!r} does not parse; {_mend()}")
    return answer


def _listed(value: Any) -> list:
    """The gold answers of a column: those of a list, of a list of texts written as JSON, or the value alone."""
    if isinstance(value, str) and value.lstrip().startswith('["'):
        try:
            texts = json.loads(value)
        except (ValueError, RecursionError):
            return [value]
        return texts if all(isinstance(text, str) for text in texts) else [value]
    return value if isinstance(value, list) else [value]


def _scalar(value: Any) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _column(row: dict[str, Any], names: Sequence[str], place: str) -> Any:
    if not any(name.split(".")[0] in row for name in names):
        raise InputError(
            f"{place}: no column {' or '.join(names)}; it has {', '.join(sorted(row)) or 'none'}; rename the right one"
        )
    return first(row, names)


def first(row: dict[str, Any], names: Sequence[str]) -> Any:
    """What the first of the columns that has anything holds; None where none has."""
    for name in names:
        value: Any = row
        for key in name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None


def _text(value: Any) -> str:
    return "\n\n".join(map(str, value)) if isinstance(value, list) else str(value or "")


def _mend() -> str:
    return "correct or remove that row, or leave such rows out with the task option skip_bad_gold=True"
