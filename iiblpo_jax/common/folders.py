"""Folders of weights and what is to be known of them, that are there whole or not at all."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file


def replace_folder(folder: Path, name: str, weights: dict[str, np.ndarray], documents: Mapping[str, Any]) -> None:
    """Writes a folder at once: a process killed at any moment leaves the old one or none, never half of one.

    Args:
      folder: replaced if it exists.
      name: of the safetensors file in it that holds the weights.
      weights: arrays by name.
      documents: JSON by the name of its file.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        save_file(weights, temporary / name)
        for file, content in documents.items():
            (temporary / file).write_text(json.dumps(content, indent=2) + "\n")
        if folder.exists():
            os.rename(folder, temporary / "replaced")
        os.rename(temporary, folder)
        shutil.rmtree(folder / "replaced", ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
