"""The day that chat templates are told, one for a whole run: WORKDIR/prompts.json keeps it.

A template that asks for today's date (Llama 3.2) would make other prompts of the same problems tomorrow. A run could
then not be resumed, its evaluations could not be compared, and processes around midnight would not agree.
"""

import datetime
import json
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from iiblpo_jax.common import json_input
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.common.jsonl import write_atomic
from iiblpo_jax.model.tokens.tokenizer import Tokenizer

FILE = "prompts.json"


def keep_date(tokenizer: Tokenizer, workdir: Path) -> Tokenizer:
    """The tokenizer on the day that the run in `workdir` began; the first call writes it down.

    Nothing is written for a chat template that does not ask. In a run of several processes the first one decides.

    Raises:
      InputError: the file holds no date.
    """
    if not tokenizer.is_dated:
        return tokenizer
    path, leads = workdir / FILE, jax.process_index() == 0
    known = _read(path) if leads else None
    day = (known or tokenizer.date).toordinal()
    date = datetime.date.fromordinal(int(multihost_utils.broadcast_one_to_all(np.int32(day))))
    if leads and known is None:
        workdir.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps({"date": date.isoformat()}) + "\n")
    return tokenizer.dated_on(date)


def _read(path: Path) -> datetime.date | None:
    """The date of a file; None if there is no file."""
    if not path.is_file():
        return None
    mend = "write the day the run began into it, or use another --workdir"
    text = str(json_input.load_object(path, mend=mend).get("date"))
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        raise InputError(f'{path} has no date such as "2026-11-27"; {mend}') from None
