"""Folders that are there whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def replace_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Writes a folder at once: a process killed at any moment leaves the old one or none, never half of one.

    Args:
      folder: replaced if it exists.
      fill: writes the files into the folder it is given.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        fill(temporary)
        if folder.exists():
            os.rename(folder, temporary / "replaced")
        os.rename(temporary, folder)
        shutil.rmtree(folder / "replaced", ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
