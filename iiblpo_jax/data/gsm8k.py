"""GSM8K from a local directory: written by TensorFlow Datasets, or Hugging Face parquet, or JSON Lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data import competition, rows
from iiblpo_jax.data.task import Task, boxed_task


def make_gsm8k(*, data_dir: str | Path | None, **options) -> Task:
    """GSM8K; a directory with `gsm8k/1.0.0/dataset_info.json` below it is read through TFDS, others as files.

    Raises:
      InputError: see `competition.make_competition`; also a TFDS directory in a format that needs TensorFlow.
    """
    root = _tfds_root(Path(data_dir)) if data_dir and "files_glob" not in options else None
    if root is None:
        return competition.make_competition("gsm8k", data_dir=data_dir, **options)
    return _from_tfds(root, **options)


def _tfds_root(data_dir: Path) -> Path | None:
    """The TFDS data_dir, whether the user names it, its `gsm8k` directory or the version's."""
    for root in (data_dir, data_dir.parent, data_dir.parent.parent):
        infos = [path.parent for path in root.glob("gsm8k/*/dataset_info.json")]
        if any(data_dir in (root, path.parent, path) for path in infos):
            return root
    return None


def _from_tfds(root: Path, *, heldout_size: int = 256, skip_bad_gold: bool = False) -> Task:
    # tfds.builder("gsm8k") would import TensorFlow; the class itself does not.
    from tensorflow_datasets.text.gsm8k.gsm8k import Gsm8k

    builder = Gsm8k(data_dir=str(root))

    def problems(name: str):
        if name not in builder.info.splits:
            return
        try:
            rows_of: Any = builder.as_data_source  # its signature is hidden by a decorator
            source = rows_of(split=name)
        except NotImplementedError as error:
            raise InputError(
                f"{builder.data_dir} is written in a format that needs TensorFlow to read; prepare it again with "
                f"Gsm8k(data_dir=..., file_format='array_record').download_and_prepare()"
            ) from error
        for index in range(len(source)):
            yield _row(
                source[index], place=f"{builder.data_dir} {name} row {index + 1}", id=f"gsm8k/{name}:{index + 1}"
            )

    train, test = (competition.unique(problems(name), skip_bad_gold=skip_bad_gold) for name in ("train", "test"))
    if not (train or test):
        raise InputError(f"{builder.data_dir} holds no GSM8K rows; prepare it again")
    return boxed_task("gsm8k", *competition.split(train, test, heldout_size=heldout_size))


def _row(entry: dict, *, place: str, id: str):
    question, answer = (entry[key].decode() for key in ("question", "answer"))
    try:
        return rows.gsm8k_row(question, answer, place=place, id=id)
    except rows.BadGold as error:
        return error
