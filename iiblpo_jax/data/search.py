"""Questions about a made-up world, to be answered by searching: one fact, or two of which one leads to the other.

    In which town was the mayor of Velda born?     Velda lies on the river Oskel. Its mayor is Tamir Quon.
                                                   Tamir Quon, a weaver, was born in Brennor.

Towns and people have invented names, so that no model knows an answer; each has a document (environments/search.py).
"""

from __future__ import annotations

import random

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.heldout import is_heldout
from iiblpo_jax.data.task import Task
from iiblpo_jax.environments.search import OPENING, TURN_END, Search
from iiblpo_jax.rewards.exact import Exact
from iiblpo_jax.rewards.verifier import Problem

NAME = "search"
MARKER = "Answer:"
TEMPLATE = (
    "Answer the question. You can look for documents, one query at a time, with "
    f"{OPENING}query{TURN_END}; what is found stands between <information> and </information>. End with a line "
    f"'{MARKER} X'.\nQuestion: {{question}}\n"
)
CRAFTS = "baker weaver potter mason smith tanner glazier cooper dyer saddler".split()
MOST = 2000  # towns: names of three syllables are some ten thousand


def make_search(*, seed: int, towns: int = 100, hops: tuple = (1, 2), top: int = 1, world: int = 0) -> Task:
    """All questions of `hops` facts about a world of towns, each with a mayor; an eighth of them is held out.

    Args:
      seed: of the order of the training questions.
      towns: of the world; twice as many documents.
      hops: facts that an answer takes, 1 or 2.
      top: documents an answer of the search engine.
      world: its number. Worlds share crafts and rules, and of names what chance makes them.

    Raises:
      InputError: no questions of this kind; bm25s is not installed.
    """
    if not 8 <= towns <= MOST or not hops or not set(hops) <= {1, 2} or not 1 <= top <= towns:
        raise InputError(
            f"search with towns={towns}, hops={hops}, top={top}; choose 8 to {MOST} towns, hops of 1 and 2, and at "
            "least one document"
        )
    documents, questions = _world(towns, random.Random(f"{NAME}/world/{world}"))
    asked = [_problem(*question, world) for question in questions if question[0] in hops]
    train = [problem for problem in asked if not is_heldout(problem.question)]
    random.Random(f"{NAME}/train/{seed}").shuffle(train)
    return Task(
        name=NAME,
        train=train,
        heldout=[problem for problem in asked if is_heldout(problem.question)],
        verifier=Exact(marker=MARKER),
        cue=f"\n{MARKER} ",
        marker=MARKER,
        template=TEMPLATE,
        chat=True,
        environment=Search(documents=tuple(documents), top=top),
    )


def _world(towns: int, rng: random.Random) -> tuple[list[str], list[tuple[int, str, str]]]:
    """Documents, and (hops, question, answer) about them."""
    names = _names(4 * towns, rng)
    town, river, first, last = (names[i * towns : (i + 1) * towns] for i in range(4))
    documents, questions = [], []
    for i in range(towns):
        mayor, birthplace, craft = f"{first[i]} {last[i]}", rng.choice(town), rng.choice(CRAFTS)
        documents += [
            f"{town[i]} lies on the river {river[i]}. Its mayor is {mayor}.",
            f"{mayor}, a {craft}, was born in {birthplace}.",
        ]
        questions += [
            (1, f"On which river does {town[i]} lie?", river[i]),
            (1, f"Who is the mayor of {town[i]}?", mayor),
            (1, f"In which town was {mayor} born?", birthplace),
            (2, f"In which town was the mayor of {town[i]} born?", birthplace),
            (2, f"What is the craft of the mayor of {town[i]}?", craft),
        ]
    return documents, questions


def _names(count: int, rng: random.Random) -> list[str]:
    """Different names of three syllables."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(3)).capitalize()] = None
    return list(found)


def _problem(hops: int, question: str, answer: str, world: int) -> Problem:
    return Problem(
        id=f"{NAME}/{world}/{question}", question=question, answer=answer, task=NAME, metadata={"hops": hops}
    )
