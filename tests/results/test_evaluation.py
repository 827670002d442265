"""Evaluation of the embedded model on a few sums, recounted by hand, and the numbers made of a few samples."""

import dataclasses

import jax
import numpy as np
import pytest

from iiblpo_jax import InputError, generate, load_model
from iiblpo_jax.data.pipeline import heldout_batches
from iiblpo_jax.defaults import default_config
from iiblpo_jax.model.decoder import params_of
from iiblpo_jax.results import evaluation
from iiblpo_jax.results.evaluation import Answers, Evaluator, evaluation_tasks, summary
from iiblpo_jax.rewards.exact import Exact
from iiblpo_jax.rewards.gym import Gym
from iiblpo_jax.rewards.math import Math
from iiblpo_jax.rewards.together import make_scorer
from iiblpo_jax.rollout.engine import rollout
from iiblpo_jax.rollout.forest import STOP
from iiblpo_jax.rollout.publication import PublicationSpec, publish
from iiblpo_jax.rollout.sampling import Sampling
from iiblpo_jax.rollout.spec import RolloutSpec

PROBLEMS, SAMPLES, S, T = 5, 4, 8, 28
PER_CALL = 3  # five problems in calls of three: the last call has one place to spare


def make_config(**rollout_changes):
    config = default_config()
    config.task.options = {"k_min": 3, "k_max": 4, "train_size": 8, "heldout_size": 16}
    config["rollout"].update({"slots": PER_CALL, "max_prompt": S, "max_tokens": T, "refill_at": 1, **rollout_changes})
    config["eval"].update({"problems": PROBLEMS, "samples": SAMPLES, "temperature": 1.5, "top_p": 1.0, "k": (1, 2, 4)})
    return config


@pytest.fixture(scope="module")
def embedded():
    return load_model(default_config().model.path)


def published(model):
    return publish(params_of(model), spec=PublicationSpec(model=model.config))


@pytest.fixture(scope="module")
def evaluate(embedded):
    """evaluate(config) -> metrics, in calls of PER_CALL problems."""
    model, tokenizer = embedded

    def run(config):
        tasks = evaluation_tasks(config)
        with pytest.MonkeyPatch.context() as patch, make_scorer(config, tasks) as scorer:
            patch.setattr(evaluation, "TRAJECTORIES_PER_CALL", PER_CALL * SAMPLES)
            return Evaluator(config, tasks, model.config, tokenizer, scorer)(published(model))

    return run


@pytest.fixture(scope="module")
def metrics(evaluate):
    return evaluate(make_config())


def is_right(question: str, response: str) -> bool:
    total = sum(int(term) for term in question.removesuffix("=").split("+"))
    return response.split("#")[-1] == str(total) and "#" in response


def test_sampled_numbers_equal_a_recount(embedded, metrics):
    """The rollouts are sampled again here, and read with Python's own arithmetic."""
    model, tokenizer = embedded
    config = make_config()
    (task,) = evaluation_tasks(config)
    spec = RolloutSpec(
        model=model.config,
        roots=SAMPLES,
        slots=PER_CALL,
        max_tokens=T,
        sampling=Sampling(temperature=1.5),
        stop_ids=tokenizer.stop_ids,
        never_ids=tokenizer.textless_ids(model.config.vocab_size),
    )
    batches = heldout_batches(task, tokenizer, batch_size=PER_CALL, max_prompt=S, max_answer=1, limit=PROBLEMS)
    right, lengths, cut = [], [], []
    for index, batch in enumerate(batches):
        key = jax.random.fold_in(jax.random.key(config.eval.seed), index)
        forest, _ = rollout(published(model), batch.tokens_PS, batch.length_P, key, spec=spec)
        for r, tokens in enumerate(np.asarray(forest.tokens_RT)):
            if batch.valid_P[r // SAMPLES]:
                text = tokenizer.decode(tokens[: int(forest.length_R[r])])
                right.append(is_right(batch.problems[r // SAMPLES].question, text))
                lengths.append(int(forest.length_R[r]) - int(forest.finish_R[r] == STOP))
                cut.append(forest.finish_R[r] != STOP)
    right = np.array(right).reshape(PROBLEMS, SAMPLES)
    assert 0 < right.mean() < 1  # else the comparison would be blind
    assert metrics["eval/arithmetic/pass@1"] == pytest.approx(right.mean())
    assert metrics["eval/arithmetic/pass@4"] == pytest.approx(right.any(1).mean())
    assert metrics["eval/arithmetic/tokens"] == pytest.approx(np.mean(lengths))
    assert metrics["eval/arithmetic/truncated"] == pytest.approx(np.mean(cut))


def test_greedy_equals_generate(embedded, metrics):
    questions = [problem.question for problem in evaluation_tasks(make_config())[0].heldout[:PROBLEMS]]
    texts = generate(*embedded, questions, max_tokens=T)
    right = [is_right(question, text) for question, text in zip(questions, texts, strict=True)]
    assert metrics["eval/arithmetic/greedy"] == pytest.approx(np.mean(right))


def test_numbers_do_not_depend_on_the_slots(evaluate, metrics):
    assert evaluate(make_config(slots=16, refill_at=5)) == metrics


def test_the_names_are_those_of_the_metrics_file(metrics):
    names = "pass@1 pass@2 pass@4 maj@2 maj@4 reward tokens truncated greedy"
    diversity = "distinct_1 distinct_4 self_bleu self_rouge unique_correct"
    assert set(metrics) == {f"eval/arithmetic/{name}" for name in f"{names} {diversity}".split()}


def test_summary_by_hand():
    answers = Answers(
        reward_Nn=np.array([[1.0, 0.25, 0.0, 1.0], [0.0] * 4]),
        truncated_Nn=np.array([[False] * 4, [False, True, True, True]]),
        answers=[["7", "8", "8", "7"], ["1", None, "2", "1"]],
        plans=[["a", "b", "b", "a"], ["c", None, "d", "c"]],
        tokens=[[[1, 2], [1, 3], [1, 3], [1, 2]], [[4], [], [5], [4]]],
    )
    found = summary(answers, (2, 4))
    assert found["pass@1"] == pytest.approx(1 / 4)
    assert found["pass@2"] == pytest.approx((1 - 1 / 6) / 2)  # one of the 6 pairs holds no right answer
    assert found["pass@4"] == pytest.approx(1 / 2)
    assert found["maj@2"] == pytest.approx((1 / 2 + 1 / 2 + 0 + 0) / 4)  # blocks 7-8 and 8-7: a fair tie each
    assert found["maj@4"] == pytest.approx(1 / 4)  # 7 and 8 tie; 1 wins and is wrong
    assert found["reward"] == pytest.approx(2.25 / 8)
    assert found["tokens"] == pytest.approx(11 / 8)
    assert found["truncated"] == pytest.approx(3 / 8)
    assert found["distinct_1"] == pytest.approx((3 / 8 + 2 / 3) / 2)
    assert found["unique_correct"] == pytest.approx(1 / 2)  # both right samples of the first problem are plan a


def test_unique_correct_counts_plans_of_right_samples_only():
    answers = Answers(
        reward_Nn=np.array([[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 1.0, 1.0], [0.0] * 4]),
        truncated_Nn=np.zeros((3, 4), bool),
        answers=[["1"] * 4] * 3,
        plans=[["a", "b", "a", "c"], [None, "a", "b", None], ["a", "b", "c", "d"]],
        tokens=[[[1]] * 4] * 3,
    )
    assert summary(answers, (1,))["unique_correct"] == pytest.approx((2 + 1 + 0) / 3)


def test_one_sample_has_neither_votes_nor_diversity():
    answers = Answers(
        reward_Nn=np.array([[1.0], [0.0]]),
        truncated_Nn=np.array([[False], [True]]),
        answers=[["7"], [None]],
        plans=[["a"], [None]],
        tokens=[[[1, 2]], [[3]]],
    )
    assert summary(answers, (1,)) == {"pass@1": 0.5, "reward": 0.5, "tokens": 1.5, "truncated": 0.5}


@pytest.mark.parametrize(
    ("verifier", "response", "answer"),
    [
        (Exact(marker="#"), "1+2=3;#4;# 3 ", "3"),
        (Exact(marker="#"), "1+2=3", None),
        (Exact(marker=" "), " 42 and 7", "42"),
        (Exact(marker=" "), "none", None),
        (Math(), r"\boxed{1} so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (Math(), "0.5", None),
        (Gym(), "<answer>a</answer> or <answer> b </answer>", "b"),
        (Gym(), "<answer>a", None),
    ],
)
def test_the_answer_that_votes(verifier, response, answer):
    assert verifier.answer(response) == answer


def test_evaluation_tasks():
    config = make_config()
    (trained,) = evaluation_tasks(config)
    assert evaluation_tasks(config, [trained]) == [trained]
    config["eval"].update({"tasks": ("sums", "arithmetic")})
    sums, same = evaluation_tasks(config, [trained])
    assert sums.name == "sums" and same is trained


def test_a_task_without_heldout_problems_is_refused(embedded):
    model, tokenizer = embedded
    config = make_config()
    empty = dataclasses.replace(evaluation_tasks(config)[0], heldout=[])
    with make_scorer(config, [empty]) as scorer, pytest.raises(InputError, match="no held-out problems"):
        Evaluator(config, [empty], model.config, tokenizer, scorer)
