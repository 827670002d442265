"""Evaluation of the embedded model on a few sums, recounted by hand, and the numbers made of a few samples."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from iiblpo_jax import InputError, generate, load_model
from iiblpo_jax.config.validation import validate
from iiblpo_jax.data.pipeline import heldout_batches
from iiblpo_jax.data.prompts import prompt_end
from iiblpo_jax.defaults import default_config
from iiblpo_jax.model.decoder import params_of
from iiblpo_jax.model.steering.code_tokens import with_codes
from iiblpo_jax.results import evaluation
from iiblpo_jax.results.evaluation import Answers, Evaluator, Kept, evaluation_tasks, summary
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
    """evaluate(config, kept) -> metrics, in calls of PER_CALL problems."""
    model, tokenizer = embedded

    def run(config, kept=None):
        tasks = evaluation_tasks(config)
        with pytest.MonkeyPatch.context() as patch, make_scorer(config, tasks) as scorer:
            patch.setattr(evaluation, "TRAJECTORIES_PER_CALL", PER_CALL * SAMPLES)
            return Evaluator(config, tasks, model.config, tokenizer, scorer)(published(model), kept=kept)

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


def test_with_codes_the_samples_share_them_out_and_z_off_stands_beside(embedded, monkeypatch):
    """Codes that begin as the very token that they replace give the plain samples, one and all."""
    model, tokenizer = embedded
    config, forests = make_config(), []
    config.codes.n, config.eval.greedy = 2, False
    (task,) = evaluation_tasks(config)
    coded = with_codes(model, 2, end=prompt_end([task], tokenizer), noise=0.0)

    def watched(*args, **kwargs):
        forests.append(rollout(*args, **kwargs)[0])
        return forests[-1], None

    monkeypatch.setattr(evaluation, "rollout", watched)
    with make_scorer(config, [task]) as scorer:
        evaluator = Evaluator(config, [task], coded.config, tokenizer, scorer)
        found = evaluator(published(coded))
    assert np.sum(evaluator.plans["arithmetic"]["counts"], axis=1).tolist() == [PROBLEMS * SAMPLES // 2] * 2
    names = {name.rpartition("/")[2] for name in found}
    assert len(found) == 2 * len(names) and "pass@4" in names
    differ = {name for name in names if found[f"eval/arithmetic/{name}"] != found[f"eval/arithmetic/z_off/{name}"]}
    assert differ <= {"pass@2"}  # which two of the four are drawn
    under, plain = forests
    assert plain.codes_PN is None
    asked = evaluation.Asked(task=task, prompts=[None] * PROBLEMS, samples=SAMPLES, block=PROBLEMS, codes=2)
    code_Nn = np.asarray(under.code_R(SAMPLES)).reshape(-1, SAMPLES) - model.config.vocab_size
    np.testing.assert_array_equal(asked.codes_of(config.eval.seed, SAMPLES), code_Nn)
    assert (code_Nn.sum(1) == SAMPLES // 2).all() and len({tuple(row) for row in code_Nn}) == 2


# -- an evaluation that is written down -------------------------------------------------------------------------------


def lines_of(folder):
    """File name -> its protocol and its lines by the number of their problem."""
    found = {}
    for path in folder.glob("*.jsonl"):
        first, *rows = map(json.loads, path.read_text().splitlines())
        assert len({row["index"] for row in rows}) == len(rows), "a problem twice"
        found[path.name] = first, {row["index"]: row for row in rows}
    return found


def counted(monkeypatch):
    """Prompts of every call of the engine, in the order of the calls."""
    calls = []

    def watched(policy, prompt_PS, length_P, origin, **kwargs):
        calls.append(np.asarray(prompt_PS))
        return rollout(policy, prompt_PS, length_P, origin, **kwargs)

    monkeypatch.setattr(evaluation, "rollout", watched)
    return calls


@pytest.fixture(scope="module")
def kept(evaluate, metrics, tmp_path_factory):
    """An evaluation that was left alone: its folder."""
    folder, said = tmp_path_factory.mktemp("kept"), []
    assert evaluate(make_config(), Kept(folder, {"step": 7}, say=said.append)) == metrics
    assert said == [f"arithmetic: {n} of 5 problems, {k} samples each" for k in (4, 1) for n in (3, 5)]
    return folder


def test_every_problem_has_its_line(kept):
    sampled, greedy = sorted(lines_of(kept).values(), key=lambda found: -found[0]["protocol"]["samples"])
    assert greedy[0]["protocol"]["sampling"]["temperature"] == 0 and sampled[0]["protocol"]["policy"] == {"step": 7}
    for (_, rows), samples in ((sampled, 4), (greedy, 1)):
        assert sorted(rows) == list(range(PROBLEMS))
        for row in rows.values():
            right = [is_right(row["question"], text) for text in row["texts"]]
            assert row["rewards"] == right and row["right"] == sum(right) and len(right) == samples
            assert row["tokens"] == sum(row["lengths"]) and row["problem"] == f"arithmetic/{row['question'][:-1]}"


@pytest.mark.parametrize("left", [(), (0,), (1, 3, 4), (0, 1, 2, 3)])
def test_it_goes_on_to_the_same_numbers(kept, evaluate, metrics, monkeypatch, tmp_path, left):
    """Whatever problems are there, in whatever order: only the others are sampled, in calls of another make-up."""
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("*.jsonl"):
        first, *rows = path.read_text().splitlines(keepends=True)
        there = [row for row in reversed(rows) if json.loads(row)["index"] in left]
        path.write_text("".join([first, *there, "{torn"]))
    calls = counted(monkeypatch)
    assert evaluate(make_config(), Kept(tmp_path, {"step": 7})) == metrics
    assert lines_of(tmp_path) == lines_of(kept)
    assert len(calls) == 2 * -(-(PROBLEMS - len(left)) // PER_CALL)


def test_nothing_is_sampled_again(kept, evaluate, metrics, monkeypatch):
    calls = counted(monkeypatch)
    assert evaluate(make_config(), Kept(kept, {"step": 7})) == metrics
    assert evaluate(make_config(slots=9), Kept(kept, {"step": 7})) == metrics  # not of the protocol
    assert calls == []


def test_another_policy_or_protocol_is_sampled(kept, evaluate, monkeypatch, tmp_path):
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    calls, config = counted(monkeypatch), make_config()
    config.eval.update({"greedy": False, "seed": 5})
    evaluate(config, Kept(tmp_path, {"step": 7}))
    evaluate(make_config(), Kept(tmp_path, {"step": 8}))
    assert len(calls) == 2 + 4 and len(list(tmp_path.iterdir())) == 2 + 1 + 2


def test_tasks_have_their_own_samples(embedded, monkeypatch):
    """256 here and 16 there: of each task the k that it has samples for."""
    model, tokenizer = embedded
    config = make_config()
    config.eval.update({"problems": 2, "greedy": False, "k": (1, 2, 6), "avg": (3, 5), "samples": 3})
    config.eval.task_samples = {"arithmetic": 6}
    validate(config)
    [task] = evaluation_tasks(config)
    others = [dataclasses.replace(problem, task="other") for problem in task.heldout]
    tasks, found = [task, dataclasses.replace(task, name="other", heldout=others)], {}
    monkeypatch.setattr(evaluation, "attempts_of", lambda texts, *rest: found.setdefault("n", []).append(len(texts)))
    monkeypatch.setattr(evaluation, "answers_of", lambda task, attempts: hand_made(found["n"][-1]))
    monkeypatch.setattr(evaluation, "parties", lambda verifier, answers, settle: answers)
    with make_scorer(config, tasks) as scorer:
        metrics = Evaluator(config, tasks, model.config, tokenizer, scorer)(published(model))
    assert found["n"] == [6, 6, 3, 3]
    ks = {name.partition("@")[0] + "@" + name.partition("@")[2] for name in metrics if "@" in name}
    assert ks == {
        *(f"eval/arithmetic/{name}" for name in ("pass@1", "pass@2", "pass@6", "maj@2", "maj@6", "avg@3", "avg@5")),
        *(f"eval/other/{name}" for name in ("pass@1", "pass@2", "maj@2", "avg@3")),
    }


def hand_made(samples):
    """Answers to two problems, none right."""
    return Answers(
        reward_Nn=np.zeros((2, samples)),
        length_Nn=np.ones((2, samples)),
        truncated_Nn=np.zeros((2, samples), bool),
        answers=[[None] * samples] * 2,
        plans=[[None] * samples] * 2,
        heads=[[[1]]] * 2,
    )


def test_samples_of_a_task_that_is_not_evaluated_are_refused(embedded):
    model, tokenizer = embedded
    config = make_config()
    config.eval.task_samples = {"arithmetik": 6}
    tasks = evaluation_tasks(config)
    message = r"eval\.task_samples names arithmetik \(did you mean arithmetic\?\), which is not evaluated"
    with make_scorer(config, tasks) as scorer, pytest.raises(InputError, match=message):
        Evaluator(config, tasks, model.config, tokenizer, scorer)


def test_training_tasks_are_not_made_where_none_of_them_is_evaluated(monkeypatch):
    config = make_config()
    config.task.name = "math"  # whose files are not here
    config.eval.tasks = ("sums",)
    assert [task.name for task in evaluation_tasks(config)] == ["sums"]
    with pytest.raises(InputError, match="math"):
        config.eval.tasks = ("sums", "math")
        evaluation_tasks(config)


# -- numbers made of samples ------------------------------------------------------------------------------------------


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
        length_Nn=np.array([[2, 2, 2, 2], [1, 0, 1, 1]]),
        heads=[[[1, 2], [1, 3], [1, 3], [1, 2]], [[4], [], [5], [4]]],
    )
    found = summary(answers, (2, 4), avg=(1, 3))
    assert found["pass@1"] == pytest.approx(1 / 4)
    assert found["pass@2"] == pytest.approx((1 - 1 / 6) / 2)  # one of the 6 pairs holds no right answer
    assert found["pass@4"] == pytest.approx(1 / 2)
    assert found["maj@2"] == pytest.approx((1 / 2 + 1 / 2 + 0 + 0) / 4)  # blocks 7-8 and 8-7: a fair tie each
    assert found["maj@4"] == pytest.approx(1 / 4)  # 7 and 8 tie; 1 wins and is wrong
    assert found["avg@1"] == pytest.approx(1 / 2) and found["avg@3"] == pytest.approx((1 / 3 + 0) / 2)
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
        length_Nn=np.ones((3, 4)),
        heads=[[[1]] * 4] * 3,
    )
    assert summary(answers, (1,))["unique_correct"] == pytest.approx((2 + 1 + 0) / 3)


def test_one_sample_has_neither_votes_nor_diversity():
    answers = Answers(
        reward_Nn=np.array([[1.0], [0.0]]),
        truncated_Nn=np.array([[False], [True]]),
        answers=[["7"], [None]],
        plans=[["a"], [None]],
        length_Nn=np.array([[2], [1]]),
        heads=[[[1, 2]], [[3]]],
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
