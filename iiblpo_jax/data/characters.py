"""Whether a tokenizer can write what a task asks and expects, so that it does not ask something else without a word.

A tokenizer with a token for what it does not know turns a character into that, others drop it; one that falls back on
bytes can write everything. Which kind it is shows in two characters that no text has.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

from iiblpo_jax.common.errors import InputError, warn
from iiblpo_jax.data.task import HINT_PLACES, Task
from iiblpo_jax.rewards.verifier import Problem

STRANGERS = "\ue0f1", "\uf8c3"  # for private use
SHOWN = 20  # characters in a message


def check_characters(task: Task, problems: Sequence[Problem], tokenizer, *, hinted: bool = False) -> None:
    """Warns of problems with characters that the tokenizer cannot write.

    Args:
      task: whose template, cue and marker every prompt or response has.
      problems: of the task, at least one.
      tokenizer: an `iiblpo_jax.model.tokens.tokenizer.Tokenizer`.
      hinted: prompts with hints are asked too.

    Raises:
      InputError: such characters are in what the task says of every problem, or in more than half of the problems.
    """
    texts = ["\n".join([*_asked(problem), task.answer_text(problem)]) for problem in problems]
    own = "\n".join([task.template.replace("{question}", ""), task.system or "", task.cue, task.closing, task.marker])
    own += "".join(HINT_PLACES.split(task.hinted)[::2]) if hinted else ""
    unknown = _unknown({*own}.union(*texts), tokenizer)
    if not unknown:
        return
    token = (_ids(STRANGERS[0], tokenizer) or [None])[-1]

    def lost(text: str) -> set[str]:
        """A letter may be unknown alone and known in a word: then the text has no token for it."""
        found = unknown & {*text}
        return found if found and (token is None or token in (_ids(text, tokenizer) or [token])) else set()

    of_all, of_each = lost(own), list(map(lost, texts))
    count, found = sum(map(bool, of_each)), of_all.union(*of_each)
    if not found:
        return
    shown = " ".join(sorted(found)[:SHOWN]) + " ..." * (len(found) > SHOWN)
    where = "its template, cue or marker" if of_all else f"{count} of {len(texts)} problems"
    line = f"task {task.name!r}: the model's tokenizer has no token for {shown} in {where}"
    if of_all or count > len(texts) / 2:
        raise InputError(f"{line}, so the model would be asked something else; use another model, or another task")
    warn(f"{line}, which so ask something else than they say; leave them out")


def _asked(problem: Problem) -> list[str]:
    return [turn["content"] for turn in problem.messages or ()] or [problem.question]


def _unknown(characters: Iterable[str], tokenizer) -> set[str]:
    """Those among the characters that the tokenizer cannot write; blanks, marks and control characters aside, which
    many normalise away."""
    strange, other = (_ids(character, tokenizer) for character in STRANGERS)
    if strange != other:
        return set()
    unknown = {*(strange or ())} - {*(_ids("a 0", tokenizer) or ())}

    def is_unknown(character: str) -> bool:
        ids = _ids(character, tokenizer)
        return ids == strange or not unknown.isdisjoint(ids or ())

    return {c for c in characters if unicodedata.category(c)[0] not in "CMZ" and is_unknown(c)}


def _ids(text: str, tokenizer) -> list[int] | None:
    """Token ids; None where the tokenizer refuses the text."""
    try:
        return tokenizer.encode(text)
    except InputError:
        return None
