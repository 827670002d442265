import math
import pickle

import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.search import make_search
from iiblpo_jax.environments import search
from iiblpo_jax.environments.search import Search, words

pytest.importorskip("bm25s")

DOCUMENTS = ("the cat sat", "the dog sat on the mat", "a bird", "dog and cat and dog")


def bm25(query: str, documents, *, k1=1.5, b=0.75) -> list[float]:
    """Lucene's form of BM25, term by term."""
    split = [words(d) for d in documents]
    mean = sum(map(len, split)) / len(split)
    scores = []
    for document in split:
        score = 0.0
        for word in words(query):
            n, tf = sum(word in d for d in split), document.count(word)
            idf = math.log(1 + (len(split) - n + 0.5) / (n + 0.5))
            score += idf * tf / (tf + k1 * (1 - b + b * len(document) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize("query", ["dog", "cat dog", "the mat", "bird"])
def test_the_order_is_that_of_the_formula(query):
    engine, scores = Search(documents=DOCUMENTS, top=4), bm25(query, DOCUMENTS)
    wanted = sorted((i for i in range(4) if scores[i] > 0), key=lambda i: (-scores[i], i))
    assert engine.best(query) == wanted


def test_what_a_conversation_has_seen_does_not_come_again():
    engine = Search(documents=DOCUMENTS)
    first = engine.step(engine.reset(None), "I <search>dog</search>")
    assert first.observation == "\n<information>dog and cat and dog</information>\n" and first.state == (3,)
    second = engine.step(pickle.loads(pickle.dumps(first.state)), "<search>dog</search>")
    assert second.state == (3, 1) and "mat" in second.observation
    assert (
        engine.step(second.state, "<search>dog</search>").observation == "\n<information>nothing found</information>\n"
    )
    assert engine.step((), "<search>zebra</search>").state == ()
    assert engine.step((), "no tag at all</search>").state == ()


def words_as_written(text):
    return text.rstrip("?").split()


def test_every_question_can_be_answered_by_searching():
    task = make_search(seed=0, towns=12)
    for problem in [*task.train, *task.heldout]:
        state, seen = task.environment.reset(problem), ""
        query, hops = problem.question, problem.metadata["hops"]
        if hops == 2:
            query = f"the mayor of {[word for word in words_as_written(query) if word[0].isupper()][-1]} lies"
        for _ in range(hops):
            state, found, *_ = task.environment.step(state, f"<search>{query}</search>")
            seen += found
            query = found.partition("mayor is ")[2].partition(".")[0]
        assert problem.answer in seen, (problem.question, seen)


def test_the_world_does_not_depend_on_the_seed():
    one, other = make_search(seed=0, towns=12), make_search(seed=1, towns=12)
    assert one.environment == other.environment and one.heldout == other.heldout
    assert one.train != other.train and sorted(p.id for p in one.train) == sorted(p.id for p in other.train)
    assert {p.id for p in one.train}.isdisjoint(p.id for p in one.heldout)
    assert make_search(seed=0, towns=12, world=1).environment != one.environment
    assert {p.metadata["hops"] for p in make_search(seed=0, towns=12, hops=(2,)).train} == {2}


def test_refusals(monkeypatch):
    with pytest.raises(InputError, match="choose 8 to 2000 towns"):
        make_search(seed=0, towns=3)
    monkeypatch.setitem(__import__("sys").modules, "bm25s", None)
    with pytest.raises(InputError, match=r'pip install -e ".\[search\]"'):
        Search(documents=DOCUMENTS)
    assert search.OPENING == "<search>"
