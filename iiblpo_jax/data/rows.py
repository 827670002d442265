"""How the rows of the mathematics datasets become problems.

Columns, first match wins, case ignored; `a.b` is a field of a struct:

| task        | files seen in the wild                                  | question                | gold answer                                               | rationale  |
|-------------|---------------------------------------------------------|-------------------------|-----------------------------------------------------------|------------|
| `gsm8k`     | openai/gsm8k (main), grade-school-math JSONL            | question                | answer, after `####`                                      | answer, before it |
| `math`      | EleutherAI/hendrycks_math, nlile/hendrycks-MATH-benchmark | problem, question     | answer, else the last `\\boxed{}` of solution             | solution   |
| `math500`   | HuggingFaceH4/MATH-500                                  | problem, question       | answer, else the last `\\boxed{}` of solution             | solution   |
| `dapo_math` | BytedTsinghua-SIA/DAPO-Math-17k, open-r1/DAPO-Math-17k-Processed, plain JSONL | prompt (messages or text), problem, question | reward_model.ground_truth, answer, ground_truth, solution | none |
| `aime24`    | HuggingFaceH4/aime_2024, Maxwell-Jia/AIME_2024 (capitals), math-ai/aime24 | problem, question | answer, else the last `\\boxed{}` of solution          | solution   |
| `aime25`    | math-ai/aime25, opencompass/AIME2025, yentinglin/aime_2025 | problem, question    | answer, else the last `\\boxed{}` of solution             | solution   |
| `olympiad`  | Hothan/OlympiadBench (OE_TO_maths_en_COMP when present), math-ai/olympiadbench | question, problem (after context) | final_answer (list), answer        | solution (list) |
"""  # noqa: E501

from __future__ import annotations

import dataclasses
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

    question: tuple[str, ...] = ("problem", "question")
    answer: tuple[str, ...] = ("answer",)
    solution: tuple[str, ...] = ("solution",)
    numeric: bool = False
    evaluation: bool = False
    preferred: str | None = None


FORMATS = {
    "gsm8k": Format(question=("question",), numeric=True, solution=()),
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
        question=("question", "problem"),
        answer=("final_answer", "answer"),
        evaluation=True,
        preferred="OE_TO_maths_en_COMP",
    ),
}


class BadGold(InputError):
    """A row whose gold answer does not parse: skipped when the user says so."""


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
        rationale=_text(_first(row, form.solution)) or None,
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
        value = turns[-1] if turns else ""
    text = str(value or "").strip()
    if len(text) > MAX_QUESTION:
        raise InputError(f"{place}: the question has {len(text)} characters; remove that row")
    text = DAPO_SUFFIX.sub("", DAPO_PREFIX.sub("", text)).strip()
    if not text:
        raise InputError(f"{place}: the question is empty; remove that row")
    return text


def _gold(form: Format, row: dict[str, Any], place: str) -> str:
    value = _first(row, form.answer)
    if value is None and (solution := _text(_first(row, form.solution))):
        value = last_boxed(solution)
        if value is None:
            raise BadGold(f"{place}: the solution has no \\boxed{{}} answer; {_mend()}")
    if value is None:
        _column(row, (*form.answer, *form.solution), place)  # raises when the columns are absent
    parts = [gold.bare(str(part)) for part in value] if isinstance(value, list) else [gold.bare(_scalar(value))]
    answer = ", ".join(part for part in parts if part)
    if form.numeric:
        answer = gold.number(answer) or ""
    if not gold.readable(Math(), answer):
        raise BadGold(f"{place}: gold answer {str(value)[:60]!r} does not parse; {_mend()}")
    return answer


def _scalar(value: Any) -> str:
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _column(row: dict[str, Any], names: Sequence[str], place: str) -> Any:
    if not any(name.split(".")[0] in row for name in names):
        raise InputError(
            f"{place}: no column {' or '.join(names)}; it has {', '.join(sorted(row)) or 'none'}; rename the right one"
        )
    return _first(row, names)


def _first(row: dict[str, Any], names: Sequence[str]) -> Any:
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
