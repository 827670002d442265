import dataclasses
from collections import Counter

import numpy as np
import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.arithmetic import make_arithmetic
from iiblpo_jax.data.pipeline import PromptPipeline, heldout_batches
from iiblpo_jax.data.task import Task, boxed_task
from iiblpo_jax.rewards.exact import Exact
from iiblpo_jax.rewards.verifier import Problem


def small_task(name="small", count=5, heldout=0, **changes):
    """Questions a, bb, ccc, ... with answers 0, 1, 2, ...; a question of i characters has answer i - 1."""
    problems = [
        Problem(id=f"{name}/{i}", question=chr(97 + i) * (i + 1), answer=str(i), task=name)
        for i in range(count + heldout)
    ]
    verifier = Exact(marker="#")
    task = Task(name=name, train=problems[:count], heldout=problems[count:], verifier=verifier, cue="=#", marker="#")
    return dataclasses.replace(task, **changes)


def pipeline(tasks, tokenizer, **changes):
    arguments = {"prompts_per_step": 4, "max_prompt": 8, "max_answer": 2, "seed": 0}
    return PromptPipeline(tasks, tokenizer, **arguments | changes)


def ids(batch):
    return [problem.id for problem in batch.problems]


def stream(pipe, steps):
    return [ids(next(pipe)) for _ in range(steps)]


@pytest.fixture
def tokenizer(characters):
    return characters(chat=False)


def test_a_batch_by_hand(tokenizer):
    batch = next(pipeline([(small_task(count=1), 1.0)], tokenizer, prompts_per_step=2, max_prompt=3))
    assert batch.tokens_PS.tolist() == [[97, 0, 0]] * 2
    assert batch.length_P.tolist() == [1, 1]
    assert batch.answer_PA.tolist() == [[ord("0"), 0]] * 2
    assert batch.answer_length_P.tolist() == [1, 1]
    assert batch.cue_PQ.tolist() == [[ord("="), ord("#")]] * 2
    assert batch.cue_length_P.tolist() == [2, 2]
    assert batch.valid_P.all()
    assert ids(batch) == ["small/0"] * 2
    for name in ("tokens_PS", "length_P", "answer_PA", "answer_length_P", "cue_PQ", "cue_length_P"):
        assert getattr(batch, name).dtype == np.int32


def test_rows_belong_together_and_are_right_padded(tokenizer):
    pipe = pipeline([(small_task(), 1.0)], tokenizer)
    for _ in range(5):
        batch = next(pipe)
        for row, length, answer, problem in zip(
            batch.tokens_PS, batch.length_P, batch.answer_PA, batch.problems, strict=True
        ):
            assert tokenizer.decode(row[:length]) == problem.question
            assert not row[length:].any()
            assert chr(answer[0]) == problem.answer == str(length - 1)


def test_every_epoch_is_complete_and_shuffled_anew(tokenizer):
    pipe = pipeline([(small_task(count=5), 1.0)], tokenizer, prompts_per_step=5)
    epochs = stream(pipe, 6)
    assert all(sorted(epoch) == [f"small/{i}" for i in range(5)] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_seed_decides_the_order(tokenizer):
    first, again, other = (stream(pipeline([(small_task(), 1.0)], tokenizer, seed=seed), 4) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_tasks_mix_by_weight(tokenizer):
    tasks = [(small_task("a"), 3.0), (small_task("b"), 1.0)]
    steps = stream(pipeline(tasks, tokenizer, prompts_per_step=8), 5)
    for step in steps:  # weights hold within every step, not only on average
        assert Counter(name[0] for name in step) == {"a": 6, "b": 2}


def test_cues_of_different_tasks_share_one_shape(tokenizer):
    tasks = [(small_task("a"), 1.0), (small_task("b", cue="answer: "), 1.0)]
    batch = next(pipeline(tasks, tokenizer))
    assert batch.cue_PQ.shape == (4, 8)
    for row, length, problem in zip(batch.cue_PQ, batch.cue_length_P, batch.problems, strict=True):
        assert tokenizer.decode(row[:length]) == {"a": "=#", "b": "answer: "}[problem.task]


@pytest.mark.parametrize("steps", [0, 1, 7])
def test_a_restored_iterator_continues_exactly(tokenizer, steps):
    def fresh():
        return pipeline([(small_task("a", count=7), 2.0), (small_task("b"), 1.0)], tokenizer)

    pipe = fresh()
    stream(pipe, steps)
    state = pipe.get_state()
    assert isinstance(state, bytes)
    wanted = stream(pipe, 5)
    restored = fresh()
    stream(restored, 3)
    restored.set_state(state)
    assert stream(restored, 5) == wanted


@pytest.mark.parametrize("change", [{"seed": 1}, {"prompts_per_step": 8}, {"max_prompt": 3}])
def test_a_state_of_other_data_is_refused(tokenizer, change):
    state = pipeline([(small_task(), 1.0)], tokenizer).get_state()
    with pytest.raises(InputError, match="other training data"):
        pipeline([(small_task(), 1.0)], tokenizer, **change).set_state(state)


def test_long_prompts_are_dropped_and_counted(tokenizer):
    pipe = pipeline([(small_task(count=5), 1.0)], tokenizer, max_prompt=3, prompts_per_step=3)
    assert pipe.dropped == 2
    assert sorted(stream(pipe, 1)[0]) == ["small/0", "small/1", "small/2"]


def test_long_answers_are_cut(tokenizer):
    task = boxed_task("math", [Problem(id="1", question="?", answer="12345", task="math")], [])
    batch = next(pipeline([(task, 1.0)], tokenizer, max_prompt=200, max_answer=3))
    assert tokenizer.decode(batch.answer_PA[0]) == "123"
    assert batch.answer_length_P[0] == 3


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        (small_task(), {"max_prompt": 0}, "longer than rollout.max_prompt=0 tokens; the longest has 5"),
        (small_task(count=0, heldout=2), {}, "has no training problems"),
        (
            small_task(train=[Problem(id="small/9", question="?", answer=" ", task="small")]),
            {},
            "small/9: gold answer ' '",
        ),
    ],
)
def test_bad_input(tokenizer, task, changes, message):
    with pytest.raises(InputError, match=message):
        pipeline([(task, 1.0)], tokenizer, **changes)


def test_weights_must_be_positive(tokenizer):
    with pytest.raises(InputError, match="weight 0"):
        pipeline([(small_task(), 0.0)], tokenizer)


class TestHeldout:
    def batches(self, task, tokenizer, **changes):
        return heldout_batches(task, tokenizer, **{"batch_size": 4, "max_prompt": 20, "max_answer": 2} | changes)

    def test_fixed_order_and_a_filled_last_batch(self, tokenizer):
        batches = self.batches(small_task(count=1, heldout=6), tokenizer)
        assert [ids(batch) for batch in batches] == [
            ["small/1", "small/2", "small/3", "small/4"],
            ["small/5", "small/6", "small/5", "small/5"],
        ]
        assert [batch.valid_P.tolist() for batch in batches] == [[True] * 4, [True, True, False, False]]
        assert {batch.tokens_PS.shape for batch in batches} == {(4, 20)}

    def test_limit(self, tokenizer):
        batches = self.batches(small_task(count=1, heldout=6), tokenizer, limit=3)
        assert [batch.valid_P.sum() for batch in batches] == [3]

    def test_long_prompts_are_left_out(self, tokenizer):
        batches = self.batches(small_task(count=1, heldout=6), tokenizer, max_prompt=3)
        assert [name for batch in batches for name, valid in zip(ids(batch), batch.valid_P, strict=True) if valid] == [
            "small/1",
            "small/2",
        ]

    @pytest.mark.parametrize(
        ("task", "changes", "message"),
        [
            (small_task(), {}, "has no held-out problems"),
            (small_task(heldout=1), {"max_prompt": 2}, "the longest has 6"),
        ],
    )
    def test_bad_input(self, tokenizer, task, changes, message):
        with pytest.raises(InputError, match=message):
            self.batches(task, tokenizer, **changes)


def test_the_embedded_task_end_to_end(tokenizer):
    task = make_arithmetic(seed=0, train_size=64, heldout_size=16)
    batch = next(pipeline([(task, 1.0)], tokenizer, prompts_per_step=32))
    for row, length, problem in zip(batch.tokens_PS, batch.length_P, batch.problems, strict=True):
        assert eval(tokenizer.decode(row[: length - 1])) == int(problem.answer)
