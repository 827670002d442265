import sys

import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.gym import make_gym


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

    def test_a_task_without_a_single_gold_answer(self):
        task = make_gym("rush_hour", seed=0, train_size=1, heldout_size=1)
        assert task.train[0].answer == ""
        assert task.answer_text(task.train[0]) == "</answer>"

    @pytest.mark.parametrize(
        ("name", "options"), [("no_such", {}), ("chain_sum", {"x": 1}), ("chain_sum", {"min_terms": -1})]
    )
    def test_bad_names_and_options(self, name, options):
        with pytest.raises(InputError, match=f"reasoning-gym task '{name}'"):
            make_gym(name, seed=0, **options)
