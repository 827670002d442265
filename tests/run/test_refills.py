"""Dynamic sampling in whole steps: which prompts an update sees, what is counted, and that a kill changes nothing."""

import dataclasses
import itertools
import zlib

import jax
import numpy as np
import pytest
from rich.console import Console

from iiblpo_jax import InputError
from iiblpo_jax.common.jsonl import plain
from iiblpo_jax.config.validation import mistakes
from iiblpo_jax.defaults import default_config, plain_grpo
from iiblpo_jax.rewards.scorer import Grades
from iiblpo_jax.run.trainer import Trainer
from iiblpo_jax.step.score import score

P, G = 4, 2
QUIET = Console(quiet=True)


def make_config(refills, **sections):
    """Plain GRPO with the contrast filter, hot enough that some groups hold right and wrong answers."""
    config = plain_grpo(default_config(), samples=G)
    config.task.options = {"k_min": 2, "k_max": 3, "train_size": 64, "heldout_size": 16}
    sizes = {
        "rollout": {"slots": 8, "max_prompt": 8, "max_tokens": 12, "top_p": 1.0, "temperature": 1.6},
        "ib": {"filter": "contrast"},
        "train": {"steps": 4, "prompts_per_step": P, "refills": refills},
        "optim": {"lr": 1e-4},
        "update": {"minibatches": 1},
        "eval": {"problems": 4, "samples": 1, "k": (1,), "greedy": False},
    }
    for name, values in [*sizes.items(), *sections.items()]:
        config[name].update(values)
    return config


def teaches(problem_id):
    """Of a third of the problems the first response is right and the second one is not."""
    return zlib.crc32(problem_id.encode()) % 3 == 0


def scripted(problems, responses, **_):
    """Grades: of the other problems every response is wrong."""
    reward_R = np.array([float(teaches(problem.id) and i % G == 0) for i, problem in enumerate(problems)], np.float32)
    nothing = np.full(len(problems), np.nan, np.float32)
    return Grades(reward_R, {"verdict": nothing, "seconds": nothing}, {"timeouts": 0, "crashes": 0})


def without_clock(metrics):
    return {name: x for name, x in metrics.items() if not name.startswith("time/") and not name.endswith("_per_s")}


def plain_columns(columns):
    return {name: plain(values) for name, values in columns.items()}


@pytest.fixture
def batches():
    """The ids of the prompts that a run asks, rollout by rollout, read off a source of its own."""

    def read(trainer, count):
        before = trainer.source.get_state()
        ids = [[problem.id for problem in next(trainer.source).batch.problems] for _ in range(count)]
        trainer.source.set_state(before)
        return ids

    return read


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Four steps with real rewards, a checkpoint after the second: (folder, outcomes, last state, closed trainer)."""
    folder = tmp_path_factory.mktemp("straight")
    trainer, outcomes = Trainer(make_config(2), folder, console=QUIET), []
    for step, metrics, columns in trainer.steps(1, 4):
        outcomes.append((without_clock(metrics), plain_columns(columns)))
        trainer.save(step, force=step == 2)
    state = jax.device_get(trainer.state)
    trainer.close()
    return folder, outcomes, state, trainer


@pytest.fixture(scope="module")
def scripted_trainer(straight):
    """It goes on from where the straight run ended, and saves nothing."""
    *_, trainer = straight
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer.scorer, "score", scripted)
        patch.setattr(trainer, "save", lambda *_, **__: None)
        yield trainer


def test_an_update_sees_the_first_prompts_that_teach(scripted_trainer, batches):
    trainer, compiled = scripted_trainer, score._cache_size()
    asked = iter(batches(trainer, 30))
    seen = []
    for _, metrics, columns in trainer.steps(1, 6):
        rollouts = [next(asked)]
        while sum(map(teaches, itertools.chain(*rollouts))) < P and len(rollouts) < 3:
            rollouts.append(next(asked))
        everyone = list(itertools.chain(*rollouts))
        useful = [name for name in everyone if teaches(name)]
        expected = (useful + [name for name in everyone if not teaches(name)])[:P]
        assert columns["prompt_id"][::G] == columns["prompt_id"][1::G] == expected
        kept_PG = np.asarray(columns["kept"]).reshape(P, G)
        assert kept_PG.all(1).tolist() == kept_PG.any(1).tolist() == list(map(teaches, expected))
        right, wrong = np.asarray(columns["advantage"]).reshape(P, G).T
        np.testing.assert_allclose(right, [teaches(name) * 0.5**0.5 for name in expected], atol=1e-5)
        np.testing.assert_allclose(wrong, -right, atol=1e-5)
        assert metrics["rollout/refills"] == len(rollouts) - 1
        assert metrics["rollout/informative"] == len(useful)
        assert metrics["rollout/surplus"] == max(0, len(useful) - P)
        assert metrics["reward/mean"] == pytest.approx(len(useful) / len(everyone) / G)  # of all that was sampled
        assert metrics["reward/frac_mixed"] == pytest.approx(len(useful) / len(everyone))
        assert metrics["reward/frac_zero_std"] == pytest.approx(1 - min(len(useful), P) / P)  # of what is learnt from
        own = sum(map(len, columns["tokens"]))
        assert metrics["rollout/tokens"] == own if len(rollouts) == 1 else metrics["rollout/tokens"] > own
        seen.append((len(rollouts) - 1, len(useful) >= P))
    assert {(1, True), (2, True)} <= set(seen) or {(2, True), (2, False)} <= set(seen), seen
    assert score._cache_size() - compiled <= 1  # whether merged or not
    assert next(trainer.source).batch.problems[0].id == next(asked)[0]
    trainer.source.set_state(trainer._position)


def test_a_trajectory_is_the_one_that_its_prompt_was_given(scripted_trainer):
    """The log's texts and tokens, which come from the host and from the device, belong together after merging."""
    trainer = scripted_trainer
    _, columns = trainer.step(7)
    stops = trainer.tokenizer.stop_ids
    texts = [trainer.tokenizer.decode([t for t in tokens if t not in stops]) for tokens in columns["tokens"]]
    assert columns["text"] == texts and len(set(texts)) > P
    assert (np.asarray(columns["parent"]) < 0).all()


def test_refills_that_nobody_needs_change_nothing(tmp_path, monkeypatch):
    def differ(problems, responses, **_):
        found = scripted(problems, responses)
        return found._replace(rewards=np.arange(len(problems), dtype=np.float32) % G)

    outcomes = []
    for refills in (0, 3):
        trainer = Trainer(make_config(refills), tmp_path / str(refills), console=QUIET)
        monkeypatch.setattr(trainer.scorer, "score", differ)
        outcomes.append((*trainer.step(1), jax.device_get(trainer.state), trainer.source.get_state()))
        trainer.close()
    (metrics, columns, state, position), (refilled, columns_too, state_too, position_too) = outcomes
    jax.tree.map(np.testing.assert_array_equal, state, state_too)
    assert plain_columns(columns) == plain_columns(columns_too) and position == position_too
    extra = {"rollout/refills": 0, "rollout/informative": P, "rollout/surplus": 0}
    assert without_clock(refilled) == pytest.approx(without_clock(metrics) | extra, rel=1e-6)
    assert not extra.keys() & metrics.keys() and metrics["update/grad_norm"] > 0


def test_the_straight_run_has_what_resuming_must_get_right(straight):
    refills = [metrics["rollout/refills"] for metrics, _ in straight[1]]
    assert len(set(refills)) > 1 or min(refills) > 0, refills  # positions that the number of a step does not give
    assert any(metrics["update/grad_norm"] > 0 for metrics, _ in straight[1][2:])


def test_a_run_killed_in_a_refill_resumes_to_the_same_numbers(straight, monkeypatch):
    folder, outcomes, state, _ = straight
    first = Trainer(make_config(2), folder, console=QUIET)
    assert first.restore() == 2
    verify, calls = first._verify, itertools.count(1)

    def dies(done, verified):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return verify(done, verified)

    monkeypatch.setattr(first, "_verify", dies)
    with pytest.raises(KeyboardInterrupt):
        list(first.steps(3, 4))
    assert first.source.get_state() == first._position
    first.close()

    again = Trainer(make_config(2), folder, console=QUIET)
    assert again.restore() == 2
    for step in (3, 4):  # one by one, where the straight run had the next rollout under way
        metrics, columns = again.step(step)
        assert (without_clock(metrics), plain_columns(columns)) == outcomes[step - 1]
    again.close()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again.state), state)


def test_prompts_that_never_teach_use_up_the_refills_and_stop_the_run(scripted_trainer, monkeypatch):
    trainer = scripted_trainer

    def wrong(problems, responses, **_):
        return scripted([dataclasses.replace(p, id="1") for p in problems], responses)

    assert not teaches("1")
    monkeypatch.setattr(trainer.scorer, "score", wrong)
    monkeypatch.setitem(trainer.config.train, "max_empty_steps", 2)
    monkeypatch.setattr(trainer, "_empty_steps", 0)
    found = []
    with pytest.raises(InputError, match=r"^step 2: train\.max_empty_steps = 2 steps in a row .*every response scored"):
        for step, metrics, _ in trainer.steps(1, 9):
            found.append((step, metrics["rollout/refills"], metrics["update/empty"], metrics["rollout/informative"]))
    assert found == [(1, 2, 1, 0), (2, 2, 1, 0)]


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"data": {"recorded": "rollouts"}}, "train.refills = 2 samples other prompts and data.recorded samples none"),
        ({"rollout": {"roots": 1}}, "train.refills = 2 looks for prompts whose rewards differ"),
    ],
)
def test_what_refills_make_no_sense_with(sections, line):
    config = make_config(2, **sections)
    assert [found for found in mistakes(config) if "train.refills" in found and found.startswith(line)]
    config.train.refills = 0
    assert not [found for found in mistakes(config) if "train.refills" in found]
