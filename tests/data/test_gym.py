import re
import sys

import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data import gym
from iiblpo_jax.data.gym import make_gym
from iiblpo_jax.rewards.scorer import Scorer


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(InputError, match=r"pip install 'iiblpo_jax\[gym\]'"):
        make_gym("chain_sum", seed=0)


class TestWithThePackage:
    @pytest.fixture(autouse=True)
    def package(self):
        pytest.importorskip("reasoning_gym")

    def test_problems_are_the_generators(self):
        import reasoning_gym

        task = make_gym("chain_sum", seed=7, train_size=20, heldout_size=10, max_terms=3)
        wanted = [
            entry["question"] for entry in reasoning_gym.create_dataset("chain_sum", seed=7, size=20, max_terms=3)
        ]
        heldout = {problem.question for problem in task.heldout}
        assert [problem.question for problem in task.train] == [q for q in wanted if q not in heldout]
        assert len(task.heldout) == 10
        assert task.train[0].metadata["options"] == {"max_terms": 3}

    def test_training_questions_in_the_heldout_set_are_dropped(self):
        task = make_gym("coin_flip", seed=1, train_size=200, heldout_size=100, min_trials=3, max_trials=4)
        assert not {p.question for p in task.train} & {p.question for p in task.heldout}

    def test_worked_problems_come_before_the_question(self):
        def one_digit(**more):
            options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
            return make_gym("chain_sum", train_size=200, heldout_size=100, **options, **more)

        task, again = one_digit(seed=1, shots=2), one_digit(seed=2, shots=2)
        first, second, rest = task.template.split("\n\n")
        assert rest == "{question}\n" and task.template == again.template
        for shot in (first, second):
            found = re.fullmatch(r".* (\d+ [+-] \d+) =\n<answer>(-?\d+)</answer>", shot)
            assert eval(found[1]) == int(found[2])
            question = shot.partition("\n")[0]
            assert question not in {problem.question for problem in (*task.train, *task.heldout)}
        assert (task.chat, task.system) == (False, None)
        plain = one_digit(seed=1)
        assert (plain.chat, plain.template) == (True, gym.TEMPLATE)
        assert {first.partition("\n")[0], second.partition("\n")[0]} <= {
            p.question for p in (*plain.train, *plain.heldout)
        }

    def test_a_task_without_a_single_gold_answer(self):
        task = make_gym("rush_hour", seed=0, train_size=1, heldout_size=1)
        assert task.train[0].answer == ""
        assert task.answer_text(task.train[0]) == "</answer>"

    def test_a_composite_is_made_of_its_members(self):
        members = [{"name": "leg_counting", "weight": 3}, {"name": "chain_sum", "config": {"max_terms": 2}}]
        task = make_gym("composite", seed=3, train_size=40, heldout_size=4, datasets=members)
        sources = [problem.metadata["entry"]["metadata"]["source_dataset"] for problem in task.train]
        assert set(sources) == {"leg_counting", "chain_sum"}
        assert sources.count("leg_counting") > sources.count("chain_sum")
        with Scorer([task], workers=1) as scorer:
            rewards = scorer.score(task.heldout, [f"<answer>{problem.answer}</answer>" for problem in task.heldout])[0]
        assert rewards.tolist() == [1.0] * 4

    @pytest.mark.parametrize(
        ("members", "words"),
        [
            ([], "at least one dataset"),
            (["chain_sum"], "'chain_sum' is no member of a composite; give name, weight and config"),
            ([{"name": "chain_sum", "config": {"seed": 1}}], "member chain_sum sets seed"),
        ],
    )
    def test_members_that_are_none(self, members, words):
        with pytest.raises(InputError, match=words):
            make_gym("composite", seed=0, datasets=members)

    def test_integrals_without_a_solution_are_left_out(self, monkeypatch):
        """The third of these has none: SymPy gives it back."""
        answers = ["x + C", "x**2 + C", "-Integral(asin(x)**x, x) + C", "x**3 + C"]
        entries = [{"question": a, "answer": a, "metadata": {}} for a in answers]
        monkeypatch.setattr(gym, "create", lambda *_, size, **__: entries[:size])
        task = make_gym("intermediate_integration", seed=0, train_size=4, heldout_size=1)
        kept = [(problem.id, problem.answer) for problem in task.train]
        assert kept == [(f"gym:intermediate_integration/0/{n}", answers[n]) for n in (1, 3)]

    def test_a_generator_that_takes_its_time_says_so(self, monkeypatch, capsys):
        """Two seconds a problem: a line about the third one and about the sixth."""
        clock = iter(range(0, 1000, 2))
        monkeypatch.setattr(gym.time, "monotonic", lambda: next(clock))
        assert list(gym._entries(list("abcdefg"), "rearc")) == list("abcdefg")
        assert capsys.readouterr().err.splitlines() == [
            "gym:rearc: 3 of 7 problems made in 6 s",
            "gym:rearc: 6 of 7 problems made in 12 s",
        ]

    @pytest.mark.parametrize(
        ("name", "options"),
        [("no_such", {}), ("chain_sum", {"x": 1}), ("chain_sum", {"min_terms": -1}), ("chain_sum", {"x": {1, 2}})],
    )
    def test_bad_names_and_options(self, name, options):
        with pytest.raises(InputError, match=f"reasoning-gym task '{name}'"):
            make_gym(name, seed=0, **options)
