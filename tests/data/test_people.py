"""Invented people: a function of the seed, names that nobody shares, answers among those there are."""

from iiblpo_jax.data.people import ALPHABET, FACTS, REFUSAL, invented


def test_people_are_a_function_of_the_seed_and_share_no_name():
    found = invented(120, seed=3)
    assert found == invented(120, seed=3) != invented(120, seed=4)
    persons = list(dict.fromkeys(question.person for question in found))
    parts = [part for person in persons for part in person.split()]
    assert len(persons) == 120 and len(set(parts)) == 240
    assert len(found) == 120 * len(FACTS) == len({question.prompt for question in found})


def test_questions_can_be_written_and_have_one_answer():
    for question in invented(5, seed=0):
        fact = question.prompt.removeprefix(question.person).strip(" ?")
        assert sorted((question.answer, *question.others)) == sorted(FACTS[fact])
        assert set(question.prompt + question.answer + REFUSAL) <= set(ALPHABET)
