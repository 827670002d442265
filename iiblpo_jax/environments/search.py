"""A search engine over documents in memory: BM25 (Robertson and Zaragoza 2009), the index of the library bm25s.

    <search>mayor of Velda</search>   is answered with   <information>Velda lies on ...</information>

The tags are those of Search-R1 (arXiv 2503.09516).
"""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import numpy as np

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.environments.interface import Environment, Reply
from iiblpo_jax.rewards.verifier import Problem

OPENING, TURN_END = "<search>", "</search>"
BEFORE, AFTER = "\n<information>", "</information>\n"
LONGEST = 400  # characters of a query; the rest is not read
WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """What of a text is indexed and looked for."""
    return WORD.findall(text.lower())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search(Environment):
    """Answers a query with the best documents that this conversation has not seen. Its state is the seen ones.

    Attributes:
      documents: texts.
      top: documents an answer.

    Raises:
      InputError: bm25s is not installed.
    """

    documents: tuple[str, ...]
    top: int = 1
    turn_end: str = TURN_END
    bounded = True

    def __post_init__(self):
        _bm25s()

    @functools.cached_property
    def index(self) -> Any:
        """Of all documents."""
        index = _bm25s().BM25(method="lucene", k1=1.5, b=0.75)
        index.index([words(document) for document in self.documents], show_progress=False)
        return index

    def reset(self, problem: Problem) -> tuple[int, ...]:
        """Nothing seen."""
        return ()

    def step(self, state: tuple[int, ...], text: str) -> Reply:
        """The documents that fit the turn's last query best, equal ones in their order; none that has no word of it."""
        query = text.rpartition(self.turn_end)[0].rpartition(OPENING)[2][:LONGEST]
        found = tuple(self.best(query, without=state))
        shown = "\n".join(self.documents[i] for i in found) or "nothing found"
        return Reply((*state, *found), f"{BEFORE}{shown}{AFTER}")

    def best(self, query: str, *, without: tuple[int, ...] = ()) -> list[int]:
        """Numbers of the `top` documents with the highest scores above 0."""
        known = [word for word in words(query) if word in self.index.vocab_dict]
        if not known:
            return []
        score_D = np.array(self.index.get_scores(known))
        score_D[list(without)] = 0.0
        order_D = np.argsort(-score_D, kind="stable")[: self.top]
        return [int(i) for i in order_D if score_D[i] > 0]


def _bm25s() -> Any:
    try:
        import bm25s
    except ImportError:
        raise InputError('searching needs bm25s, which is not installed; pip install -e ".[search]"') from None
    return bm25s
