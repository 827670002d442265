"""Mathematics datasets from local parquet, JSON Lines or JSON files; `rows.py` has the table of their columns.

`math500`, `aime24`, `aime25` and `olympiad` only evaluate: all their files are held out, whatever they are called.
DAPO-Math-17k repeats each of its problems about a hundred times: every dataset is made unique by question.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import logging

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data import files
from iiblpo_jax.data.rows import DETAILS, FORMATS, BadGold, Format, NoGold, first, problem_of
from iiblpo_jax.data.task import Task, boxed_task
from iiblpo_jax.rewards.verifier import Problem


def make_competition(
    name: str,
    *,
    data_dir: str | Path | None,
    files_glob: str | None = None,
    heldout_size: int = 256,
    skip_bad_gold: bool = False,
) -> Task:
    """The dataset `name` from local files.

    Held-out problems are the files whose path says test (or validation, eval, dev). A training dataset without such
    a file holds out `heldout_size` problems (at most a tenth), chosen by a hash of the question. A training question
    that is also held out is dropped.

    Args:
      name: a key of `FORMATS`.
      data_dir: a directory, searched recursively, or one file.
      files_glob: selects among the files below data_dir.
      heldout_size: size of the held-out set where the files do not define one.
      skip_bad_gold: leave out rows whose gold answer does not parse, with a warning, instead of stopping.

    Raises:
      InputError: nothing to read, no rows, a missing column or a gold answer that does not parse; the message has
        the file, the row and the mend.
    """
    if heldout_size < 0:
        raise InputError(f"task {name!r}: option heldout_size = {heldout_size}; use 0 or more")
    form = FORMATS[name]
    paths = _paths(name, form, data_dir, files_glob)
    train, heldout = (_problems(name, form, paths[split], skip_bad_gold) for split in ("train", "heldout"))
    if not (train or heldout):
        raise InputError(f"task {name!r}: the files under {data_dir} hold no rows; download the dataset again")
    return boxed_task(name, *split(train, heldout, heldout_size=heldout_size))


def split(
    train: Sequence[Problem], heldout: Sequence[Problem], *, heldout_size: int
) -> tuple[list[Problem], list[Problem]]:
    """Disjoint (train, heldout): cuts a held-out set from train when there is none, and removes overlaps."""
    if train and not heldout:
        by_hash = sorted(train, key=lambda problem: hashlib.sha256(problem.question.encode()).digest())
        heldout = by_hash[: min(heldout_size, len(train) // 10)]
    asked = {problem.question for problem in heldout}
    return [problem for problem in train if problem.question not in asked], list(heldout)


def unique(rows: Iterator[Problem | BadGold], *, skip_bad_gold: bool) -> list[Problem]:
    """The problems, first occurrence of each question. Raises the first BadGold, or warns how many were left out."""
    problems: dict[str, Problem] = {}
    skipped = without = 0
    for row in rows:
        if isinstance(row, NoGold):
            without += 1
        elif isinstance(row, BadGold):
            if not skip_bad_gold:
                raise row
            skipped += 1
        else:
            problems.setdefault(row.question, row)
    if skipped:
        logging.warning("%d rows left out: their gold answers do not parse", skipped)
    if without:
        logging.warning("%d rows left out: they say that they have no answer", without)
    return list(problems.values())


def _paths(name: str, form: Format, data_dir, files_glob: str | None) -> dict[str, list[Path]]:
    paths = files.dataset_files(name, data_dir, pattern=files_glob)
    if not form.evaluation:
        return paths
    everything = sorted([*paths["train"], *paths["heldout"]])
    preferred = [path for path in everything if form.preferred and form.preferred in str(path)]
    return {"train": [], "heldout": preferred or everything}


def _problems(name: str, form: Format, paths: Sequence[Path], skip_bad_gold: bool) -> list[Problem]:
    columns = {column.split(".")[0] for column in (*form.question, *form.answer, *form.solution)}
    columns |= {*DETAILS, "context"}

    def parsed() -> Iterator[Problem | BadGold]:
        seen = set()
        for path in paths:
            for place, row in files.read_rows(path, columns=columns):
                key = str([first(row, form.question), row.get("context")])
                if key not in seen:  # parsing 1.8 million rows of DAPO-Math-17k to keep 17 thousand takes minutes
                    seen.add(key)
                    id = f"{name}/{path.parent.name}/{path.name}:{place.rpartition(' ')[2]}"
                    yield problem_of(name, form, place, id, row)

    return unique(parsed(), skip_bad_gold=skip_bad_gold)
