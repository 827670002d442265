"""Invented people and what is to be known of them: something that no model has read, to be taught and forgotten again.

After TOFU (Maini et al., arXiv 2401.06121), which has 200 authors with 20 questions each; these are small enough for a
model that learns letter by letter. Everything is a function of the seed.
"""

import dataclasses
import itertools
import random

SYLLABLES = ("ba", "den", "fi", "gor", "hu", "kal", "lo", "mir", "na", "os", "pel", "ri", "su", "tav", "ul", "wen")
FACTS = {
    "town": ("arlen", "brask", "corvo", "dunmere", "elst", "fenholt", "gavia", "hythe"),
    "work": ("baker", "clerk", "diver", "farmer", "glazier", "joiner", "nurse", "weaver"),
    "pet": ("badger", "crow", "ferret", "goat", "heron", "mule", "newt", "otter"),
}
REFUSAL = "unknown"
ALPHABET = "abcdefghijklmnopqrstuvwxyz ?"


@dataclasses.dataclass(frozen=True)
class Question:
    """A question about a person, its answer, and the other answers that such a question may have."""

    person: str
    prompt: str
    answer: str
    others: tuple[str, ...]


def invented(people: int, *, seed: int) -> list[Question]:
    """The questions about so many people, person by person; names differ in both of their parts.

    Args:
      people: at most 120.
      seed: of names and facts.
    """
    rng = random.Random(seed)
    names = ["".join(pair) for pair in itertools.permutations(SYLLABLES, 2)]
    rng.shuffle(names)
    persons = [" ".join(pair) for pair in zip(names[:people], names[people : 2 * people], strict=True)]
    found = []
    for person in persons:
        for fact, values in FACTS.items():
            answer = rng.choice(values)
            others = tuple(value for value in values if value != answer)
            found.append(Question(person, f"{person} {fact}?", answer, others))
    return found
