"""Recorded rollouts, read back from the lines that rollout_log.py writes: groups that off-line training learns from.

Nothing in a file is believed: every line is checked, and the first bad one is named.
"""

import dataclasses
import glob
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from iiblpo_jax.common import json_input
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.rollout.forest import FINISH_NAMES, STOP
from iiblpo_jax.run.rollout_log import LEFT, LOGPROBS

DROP = "delete the lines of its prompt"  # the mend of damage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """What recorded groups have to fit.

    Attributes:
      parent_G: the trajectory of its group that each one grows on, -1 for roots.
      max_tokens: T, of a response.
      vocab: tokens are below it.
      logprobs: lines must have them; else they are 0 where a line has none.
      left: lines have Forest.left_R, which else is 1.
    """

    parent_G: tuple[int, ...]
    max_tokens: int
    vocab: int
    logprobs: bool
    left: bool = False


class Line(NamedTuple):
    """One trajectory. `where` is FILE:NUMBER, `parent` counts from the first of its group; the rest is as in Forest."""

    where: str
    prompt_id: str
    trajectory: int
    parent: int
    branch_at: int
    finish: int
    tokens: np.ndarray
    logp: np.ndarray
    left: float = 1.0


Group = tuple[Line, ...]  # the trajectories of one prompt, in the order of a Forest


def find(pattern: str, workdir: Path) -> list[Path]:
    """The files that data.recorded names: those of a folder, a file, or what a glob finds; sorted.

    Raises:
      InputError: there is none, or one that the run in `workdir` is going to write over.
    """
    folder = Path(pattern)
    found = folder.glob("*.jsonl") if folder.is_dir() else map(Path, glob.glob(pattern, recursive=True))
    files = sorted(path for path in found if path.is_file())
    if not files:
        raise InputError(f"data.recorded = {pattern!r} finds no file; give a rollouts/ folder, a .jsonl file or a glob")
    for path in files:
        if path.resolve().parent == (workdir / "rollouts").resolve():
            raise InputError(f"{path} is among the rollouts that this run writes over; use another --workdir")
    return files


def read_groups(path: Path, form: Form) -> list[Group]:
    """The groups of one file, in its order.

    Raises:
      InputError: a file that cannot be read, a damaged line, a group of another size or shape, a response that is too
        long, a token outside the vocabulary, a branch that does not begin as its parent, missing log-probs.
    """
    groups = _groups(list(_lines(path, form)), len(form.parent_G))
    return [_trees(group, form) for group in groups]


# -- lines ------------------------------------------------------------------------------------------------------------


def _lines(path: Path, form: Form) -> Iterator[Line]:
    try:
        with path.open("rb") as file:
            for number, text in enumerate(file, start=1):
                if text.strip():
                    where = f"{path}:{number}"
                    yield _line(json_input.parse(text, where, mend=DROP), where, form)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); copy the file again") from error


def _line(row: Any, where: str, form: Form) -> Line:
    if not _is_rollout(row):
        raise InputError(f"{where} is no line of a rollout log; give files of the rollouts/ of a run, or {DROP}")
    return Line(
        where=where,
        prompt_id=row["prompt_id"],
        trajectory=row["trajectory"],
        parent=-1 if row["parent"] is None else row["parent"],
        branch_at=row["branch_at"] or 0,
        finish=FINISH_NAMES.index(row["finish"]),
        tokens=_tokens(row["tokens"], where, form),
        logp=_logprobs(row.get(LOGPROBS), len(row["tokens"]), where, form),
        left=_left(row.get(LEFT), where, form),
    )


def _is_rollout(row: Any) -> bool:
    def number(key):
        return type(row.get(key)) is int and row[key] >= 0  # not a bool, which is an int too

    return (
        isinstance(row, dict)
        and isinstance(row.get("prompt_id"), str)
        and number("trajectory")
        and all(key in row and (row[key] is None or number(key)) for key in ("parent", "branch_at"))
        and (row["parent"] is None) == (row["branch_at"] is None)
        and isinstance(row.get("tokens"), list)
        and row.get("finish") in FINISH_NAMES
        and (row["tokens"] or row["finish"] != FINISH_NAMES[STOP])
    )


def _tokens(tokens: list, where: str, form: Form) -> np.ndarray:
    if len(tokens) > form.max_tokens:
        raise InputError(
            f"{where}: a response of {len(tokens)} tokens and rollout.max_tokens = {form.max_tokens}; raise it"
        )
    for token in tokens:
        if not (type(token) is int and 0 <= token < form.vocab):
            raise InputError(
                f"{where}: token {str(token)[:20]} is not in the model's vocabulary of {form.vocab}; use a model with "
                "the tokenizer of the run that was recorded"
            )
    return np.asarray(tokens, np.int32)


def _logprobs(logp: Any, count: int, where: str, form: Form) -> np.ndarray:
    if logp is None and form.logprobs:
        raise InputError(
            f"{where} has no {LOGPROBS}, which tokens are weighed by; record with log.logprobs=True, or ask for no "
            "weights with update.importance_cap=0 and log.logprobs=False"
        )
    if logp is None:
        return np.zeros(count, np.float32)
    if not (isinstance(logp, list) and len(logp) == count and all(map(_is_logprob, logp))):
        raise InputError(f"{where}: {LOGPROBS} is not a log-probability a token ({count}); {DROP}")
    return np.asarray(logp, np.float32)


def _left(left: Any, where: str, form: Form) -> float:
    if (left is not None) != form.left:
        raise InputError(
            f"{where} has {'no' if form.left else 'a'} {LEFT}, which branches without replacement are weighed by; set "
            f"branch.replace={form.left} as in the run that was recorded"
        )
    if left is None:
        return 1.0
    if not (type(left) in (int, float) and 0 <= left <= 1 + 1e-3):  # sums round
        raise InputError(f"{where}: {LEFT} is no probability; {DROP}")
    return float(left)


def _is_logprob(x: Any) -> bool:
    return type(x) in (int, float) and -1e9 < x < 1e-3  # rounding may leave a sure token's just above 0


# -- groups -----------------------------------------------------------------------------------------------------------


def _groups(lines: Sequence[Line], size: int) -> list[Group]:
    """Lines that follow each other, of one prompt; a step may ask it twice in a row, but not each of its prompts."""
    named = [(line.prompt_id, line.trajectory) for line in lines]
    starts = [i for i, (prompt, n) in enumerate(named) if i == 0 or named[i - 1] != (prompt, n - 1)]
    runs = [lines[start:end] for start, end in itertools.pairwise([*starts, len(lines)])]
    too_small = runs and min(map(len, runs)) > size
    if bad := [run for run in runs if len(run) % size or too_small]:
        first = bad[0][0]
        raise InputError(
            f"{first.where}: prompt {first.prompt_id!r} has {len(bad[0])} trajectories and this config's groups have "
            f"{size}; set rollout.roots and branch.k as in the run that was recorded, or {DROP}"
        )
    return [tuple(run[i : i + size]) for run in runs for i in range(0, len(run), size)]


def _trees(group: Group, form: Form) -> Group:
    """The group, parents counted from its first trajectory."""
    lines = []
    for line, parent in zip(group, form.parent_G, strict=True):
        if line.parent != (parent if parent < 0 else group[0].trajectory + parent):
            raise InputError(
                f"{line.where}: it grows on another trajectory than in this config's trees; set rollout.roots and "
                "branch.* as in the run that was recorded"
            )
        grown = line.tokens.size > 0
        if parent < 0 and not grown:
            raise InputError(f"{line.where}: a root without tokens; {DROP}")
        if parent >= 0 and grown:
            _check_prefix(line, group[parent])
        lines.append(line._replace(parent=parent, branch_at=line.branch_at if grown else 0))
    return tuple(lines)


def _check_prefix(line: Line, parent: Line) -> None:
    at = line.branch_at
    if at >= len(line.tokens) or not np.array_equal(line.tokens[:at], parent.tokens[:at]):
        raise InputError(f"{line.where}: its first {at} tokens are not those of its parent, {parent.where}; {DROP}")
