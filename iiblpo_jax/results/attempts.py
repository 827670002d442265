"""What a policy answered to held-out problems, and its file: a line of JSON a problem, written as problems finish.

    WORKDIR/eval/problems/TASK-DIGEST.jsonl

The first line is the protocol that the samples were drawn under, which the digest is of. An evaluation that was killed
goes on with the problems that are not there; what is there is as if it had been sampled now, because the random numbers
of a problem do not depend on the others.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from iiblpo_jax.common import json_input
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.common.jsonl import plain
from iiblpo_jax.data.prompts import Prompt
from iiblpo_jax.results.diversity import MAX_SAMPLES, MAX_TOKENS
from iiblpo_jax.rewards.scorer import CORRECT

FOLDER = Path("eval", "problems")  # of a workdir


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attempts:
    """The n samples of one problem.

    Attributes:
      texts: without special tokens.
      rewards: float32.
      lengths: tokens, the stop token not counted.
      truncated: cut at the longest response allowed.
      heads: token ids that the measures of diversity read: the beginnings of the first samples.
    """

    texts: list[str]
    rewards: list[float]
    lengths: list[int]
    truncated: list[bool]
    heads: list[list[int]]


def attempts_of(
    texts: Sequence[str], tokens: Sequence[list[int]], reward_n: np.ndarray, truncated_n: np.ndarray
) -> Attempts:
    """The Attempts of decoded responses and their token ids, stop tokens left out."""
    return Attempts(
        texts=[*texts],
        rewards=plain(reward_n),
        lengths=[len(ids) for ids in tokens],
        truncated=truncated_n.tolist(),
        heads=[ids[:MAX_TOKENS] for ids in tokens[:MAX_SAMPLES]],
    )


FIELDS = tuple(field.name for field in dataclasses.fields(Attempts))


class AttemptFile:
    """The file of one task under one protocol; of several processes the first one has it.

    Args:
      folder: FOLDER of a workdir; made if needed.
      task: its name.
      protocol: as JSON: everything that decides what is sampled, but for the problems.
      prompts: the N problems.

    Attributes:
      done: index -> Attempts of the problems that are there, of the samples asked for.

    Raises:
      InputError: another process is writing it, it is damaged, or cannot be written.
    """

    def __init__(self, folder: Path, task: str, protocol: Mapping, prompts: Sequence[Prompt]):
        self._prompts, self._identities = prompts, [_identity(prompt) for prompt in prompts]
        first = json.dumps({"protocol": protocol}, sort_keys=True)
        digest = hashlib.sha256(first.encode()).hexdigest()[:12]
        self.path = folder / f"{re.sub(r'[^A-Za-z0-9_.+-]', '-', task)}-{digest}.jsonl"
        self._file: Any = None
        there = ""
        if jax.process_index() == 0:
            there = self._open(first + "\n")
        self.done = self._read(_from_first(there), json.loads(first))

    def add(self, index: int, attempts: Attempts, answers: Sequence[str | None]) -> None:
        """Writes the line of a problem, and that it is done.

        Raises:
          InputError: the disk is full.
        """
        self.done[index] = attempts
        if self._file is None:
            return
        problem = self._prompts[index].problem
        row = {
            "problem": problem.id,
            "index": index,
            "prompt": self._identities[index],
            "question": problem.question,
            "gold": problem.answer,
            "samples": len(attempts.texts),
            "right": sum(reward >= CORRECT for reward in attempts.rewards),
            "tokens": sum(attempts.lengths),
            "answers": [*answers],
            **dataclasses.asdict(attempts),
        }
        try:
            self._write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise InputError(self._unwritten(error)) from error

    def close(self) -> None:
        """Gives it back."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> AttemptFile:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _open(self, protocol: str) -> str:
        """Takes the file, new or old; the lines of problems that it has. What a kill left of a line is cut off."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            content = self.path.read_bytes()
            whole = content[: content.rfind(b"\n") + 1]
            self._file.truncate(len(whole))
            if not whole:
                self._write(protocol)
        except BlockingIOError:
            raise InputError(f"another evaluation is writing {self.path}; wait for it, or stop it") from None
        except OSError as error:
            raise InputError(self._unwritten(error)) from error
        return (whole or protocol.encode()).decode(errors="replace")

    def _write(self, text: str) -> None:
        left = text.encode()
        while left:
            left = left[self._file.write(left) :]

    def _read(self, content: str, protocol: dict) -> dict[int, Attempts]:
        """The problems of a file that are asked, and asked as they are now."""
        found = {}
        for number, line in enumerate(content.split("\n")[:-1], 1):
            row = json_input.parse(line.encode(), f"{self.path}:{number}", mend="delete the line")
            if number == 1 and row != protocol:
                raise InputError(f"{self.path} does not begin with its protocol; delete it, which costs its samples")
            if number > 1 and not _is_row(row):
                raise InputError(f"{self.path}:{number} is not what was written there; delete the line")
            if number > 1 and self._identities[row["index"] : row["index"] + 1] == [row["prompt"]]:
                found[row["index"]] = Attempts(**{name: row[name] for name in FIELDS})
        return found

    def _unwritten(self, error: OSError) -> str:
        return f"{self.path} cannot be written ({error.strerror}); make room, then the same command goes on"


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and type(row.get("index")) is int
        and row["index"] >= 0
        and isinstance(row.get("prompt"), str)
        and all(isinstance(row.get(name), list) for name in FIELDS)
        and len({len(row[name]) for name in FIELDS if name != "heads"}) == 1
    )


def _identity(prompt: Prompt) -> str:
    """Digest of what is asked and what is right."""
    content = json.dumps([prompt.tokens, prompt.problem.question, prompt.problem.answer])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _from_first(text: str) -> str:
    """The first process's text, in every process."""
    if jax.process_count() == 1:
        return text
    mine = np.frombuffer(text.encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(mine.size)))
    shared = np.zeros(length, np.uint8)
    shared[: mine.size] = mine[:length]
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(shared))).decode()
