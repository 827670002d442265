"""Hint exploration in whole steps with a teacher: who is asked again, what takes whose place, and that a kill changes
nothing."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from iiblpo_jax import InputError
from iiblpo_jax.common.jsonl import plain
from iiblpo_jax.config.validation import mistakes
from iiblpo_jax.data.countdown import make_countdown
from iiblpo_jax.data.sums import make_sums
from iiblpo_jax.data.task import first_steps
from iiblpo_jax.defaults import default_config, kepo
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.decoder import bind, logits
from iiblpo_jax.model.files.loading import load_config
from iiblpo_jax.planning.shapes import abstract_step
from iiblpo_jax.rewards.verifier import Problem
from iiblpo_jax.rollout.engine import RolloutStats
from iiblpo_jax.rollout.forest import Forest
from iiblpo_jax.run.graded import Graded
from iiblpo_jax.run.hinted import chosen
from iiblpo_jax.run.trainer import Trainer
from iiblpo_jax.step.programs import hint_key, refill_key, step_keys
from iiblpo_jax.step.sampled import Sampled

P, G, T = 4, 3, 24
QUIET = Console(quiet=True)
OUTCOMES = ("hint/prompts", "hint/rescued", "hint/rollouts")


def make_config(**sections):
    """KEPO on countdown, whose model finds few answers by itself."""
    config = kepo(default_config(), samples=G)
    config.model.path = "package:iiblpo_jax/data/assets/countdown"
    config.task.name, config.task.options = "countdown", {"k_min": 3, "k_max": 3, "train_size": 64, "heldout_size": 8}
    sizes = {
        "rollout": {"slots": 8, "max_prompt": 9, "max_tokens": T, "top_p": 1.0, "temperature": 1.0},
        "train": {"steps": 4, "prompts_per_step": P},
        "optim": {"lr": 1e-4},
        "teacher": {"kind": "average", "decay": 0.5},
        "hint": {"source": "solution", "tokens": 8, "attempts": 2},
        "log": {"logprobs": True, "entropies": True},
        "eval": {"problems": 4, "samples": 1, "k": (1,), "greedy": False},
    }
    for name, values in [*sizes.items(), *sections.items()]:
        config[name].update(values)
    return config


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Three steps, a checkpoint after the second: (folder, [(metrics, columns, weights that sampled)], last state)."""
    folder = tmp_path_factory.mktemp("straight")
    trainer, outcomes = Trainer(make_config(), folder, console=QUIET), []
    weights = jax.device_get(trainer.state.params["policy"])
    for step, metrics, columns in trainer.steps(1, 3):
        outcomes.append((without_clock(metrics), {name: plain(x) for name, x in columns.items()}, weights))
        weights = jax.device_get(trainer.state.params["policy"])
        trainer.save(step, force=step == 2)
    trainer.close()
    return folder, outcomes, jax.device_get(trainer.state), trainer


def without_clock(metrics):
    return {name: x for name, x in metrics.items() if not name.startswith("time/") and not name.endswith("_per_s")}


def test_responses_with_a_hint_take_the_place_of_wrong_ones(straight):
    """The log is of what is learnt from: rescued prompts have one or two right responses, which begin like the gold
    solution; the metrics of rewards are of what was sampled without hints."""
    _, outcomes, _, trainer = straight
    assert sum(metrics["hint/rescued"] for metrics, *_ in outcomes) > 0
    for metrics, columns, _ in outcomes:
        reward_PG = np.reshape(columns["reward"], (P, G))
        prompts, rescued, rollouts = (metrics[name] for name in OUTCOMES)
        assert 0 <= rescued <= prompts <= P and rollouts <= 2 and (rollouts > 0) == (prompts > 0)
        assert (rollouts == 2) >= (rescued < prompts)
        found = reward_PG.sum() - metrics["reward/mean"] * P * G
        assert rescued <= found + 1e-4 and found <= 2 * rescued + 1e-4
        assert (reward_PG.sum(1) == 0).sum() == prompts - rescued
        assert 0 < metrics["update/distilled"] < 1
        stops = trainer.tokenizer.stop_ids
        texts = [trainer.tokenizer.decode([t for t in tokens if t not in stops]) for tokens in columns["tokens"]]
        assert columns["text"] == texts
        graded = trainer.scorer.score([problem_of(trainer, name) for name in columns["prompt_id"]], texts)
        np.testing.assert_array_equal(graded.rewards, columns["reward"])


def problem_of(trainer, name):
    task = make_countdown(seed=0, k_min=3, k_max=3, train_size=64, heldout_size=8)
    return next(problem for problem in task.train if problem.id == name)


def test_log_probs_are_those_of_the_prompt_without_the_hint(straight):
    """Of every response, replaced or not, by a dense forward of the policy that sampled."""
    _, outcomes, _, trainer = straight
    for _, columns, weights in outcomes:
        rows = [
            trainer.tokenizer.encode(question, add_special=True) + tokens
            for question, tokens in zip(columns["question"], columns["tokens"], strict=True)
        ]
        width = 9 + 1 + T
        padded = np.array([row + [0] * (width - len(row)) for row in rows])
        never = list(trainer.tokenizer.textless_ids(trainer.model_config.vocab_size))
        logp_RCV = jax.nn.log_softmax(logits(bind(trainer.model_config, weights), padded).at[..., never].set(-1e30))
        for r, (row, tokens) in enumerate(zip(rows, columns["tokens"], strict=True)):
            begin = len(row) - len(tokens)
            at = np.arange(begin, len(row))
            np.testing.assert_allclose(columns["logp"][r], logp_RCV[r, at - 1, tokens], atol=2e-4)
            entropy_T = -(jnp.exp(logp_RCV[r]) * logp_RCV[r]).sum(-1)[at - 1]
            np.testing.assert_allclose(columns["entropies"][r], entropy_T, atol=2e-4)


def test_a_resumed_run_gives_the_same_numbers(straight):
    folder, outcomes, state, _ = straight
    again = Trainer(make_config(), folder, console=QUIET)
    assert again.restore() == 2
    metrics, columns = again.step(3)
    again.close()
    assert (without_clock(metrics), {name: plain(x) for name, x in columns.items()}) == outcomes[2][:2]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again.state), state)
    assert state.average is not None


def test_keys_of_hints_are_nobody_elses():
    keys = [*step_keys(3, 5), refill_key(3, 5, 1), hint_key(3, 5, 1), hint_key(3, 5, 2), hint_key(3, 6, 1)]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == len(keys)


def test_who_is_chosen():
    """Two of the first prompt's three good ones, the only one of the other's, in places of their own groups."""
    which_P, good_R = np.array([2, 0, 2, 0]), np.zeros(12, bool)
    good_R[[0, 2, 7, 9]] = True
    seen = set()
    for seed in range(20):
        take_R = chosen(which_P, good_R, size=3, most=2, draw=np.random.default_rng(seed))
        assert (np.sort(take_R[6:9])[1:] >= 0).all() and set(take_R[6:9]) < {-1, 0, 2, 7}
        assert sorted(take_R[:3]) == [-1, -1, 9] and (take_R[3:6] == -1).all() and (take_R[9:] == -1).all()
        seen.add(tuple(take_R))
    assert len(seen) > 10


@pytest.mark.parametrize(
    ("rationale", "begin"),
    [("9-4=5;5+3=8;#8", "9-4=5;"), ("a = 3.5. So\nb.", "a = 3.5. "), (" 42", ""), (None, ""), ("1;2;3;4;", "1;2;")],
)
def test_the_first_half_of_a_solution(rationale, begin):
    assert first_steps(Problem(id="1", question="", answer="", rationale=rationale, task="t")) == begin


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"branch": {"k": 1}}, "hint.attempts = 2 asks prompts again and replaces some of their responses"),
        ({"train": {"refills": 1}}, "hint.attempts = 2 asks prompts again that train.refills = 1 gives up"),
        ({"turns": {"most": 2}}, "hint.attempts = 2 asks prompts again for responses of one turn, and turns.most = 2"),
        ({"codes": {"n": 4}}, "hint.attempts = 2 asks prompts again with hints where codes.n = 4"),
        ({"data": {"recorded": "x"}}, "hint.attempts = 2 asks prompts again and data.recorded asks none"),
        ({"hint": {"replaced": 4}}, "hint.replaced = 4 of rollout.roots = 3 responses"),
        ({"hint": {"tokens": T}}, "hint.tokens = 24 leave nothing of rollout.max_tokens = 24"),
        ({"objective": {"name": "dppo", "options": {"top_k": 2}}}, "hint.attempts = 2 asks prompts again with hints"),
    ],
)
def test_what_hints_make_no_sense_with(sections, line):
    assert not mistakes(make_config())
    assert [found for found in mistakes(make_config(**sections)) if found.startswith(line)]
    assert not [found for found in mistakes(make_config(**{**sections, "hint": {"attempts": 0}})) if "hint" in found]


def a_forest(tokens, prompt_PS):
    length_R, zero_R = jnp.array(list(map(len, tokens))), jnp.zeros(len(tokens), jnp.int32)
    tokens_RT = jnp.array([[*row, *[0] * (T - len(row))] for row in tokens])
    return Forest(
        prompt_PS=jnp.asarray(prompt_PS),
        prompt_len_P=jnp.ones(len(prompt_PS), jnp.int32),
        tokens_RT=tokens_RT,
        raw_logp_RT=0.0 * tokens_RT,
        entropy_RT=0.0 * tokens_RT,
        length_R=length_R,
        finish_R=zero_R + 1,
        parent_R=zero_R - 1,
        branch_at_R=zero_R,
        z_RZ=jnp.zeros((len(tokens), 0)),
        fallback_R=zero_R > 0,
        left_R=zero_R + 1.0,
    )


def test_hints_that_a_teacher_writes(straight):
    """Two prompts, two responses each; the second prompt has no reward. The teacher is shown its answer, and what it
    writes is put into the prompts, but where that is too long; what comes of them replaces two wrong responses."""
    hinting = dataclasses.replace(straight[3]._hinting, source="teacher", width=16, attempts=3)
    tokenizer, stop = hinting.tokenizer, hinting.tokenizer.stop_ids[0]
    task = hinting.tasks["countdown"]
    problems = tuple(task.train[:2])
    stats = RolloutStats(tokens=jnp.int32(10), slot_utilisation=jnp.float32(0.5))
    hints, right = ["9-4=", "1" * 20], problems[1].rationale
    said = [
        a_forest([[*tokenizer.encode(hint), stop] for hint in hints], [[1], [1]]),
        a_forest([[*tokenizer.encode(text), stop] for text in ("#1", right, "#2", right)], [[1], [1]]),
    ]
    asked = []

    def step():
        answer = None
        while True:
            message = yield answer
            asked.append(message)
            answer = Sampled(said[len(asked) - 1] if len(asked) < 3 else "learnt from", stats, {})

    rest = step()
    next(rest)
    shown = np.arange(6).reshape(2, 3)
    batch = SimpleNamespace(shown_PS=shown, shown_length_P=np.array([3, 2]))
    sampled = Sampled(SimpleNamespace(tokens_RT=np.zeros((4, T))), stats, {})
    done = SimpleNamespace(step=1, rest=rest, sampled=sampled, batch=batch)
    kept = Graded(
        problems=problems,
        texts=["a", "b", "c", "d"],
        rewards=np.array([1, 0, 0, 0], np.float32),
        informative_P=np.array([True, False]),
    )
    kept, metrics = hinting.explore(done, kept, straight[3]._grade)
    writes, answers, replace = asked
    assert writes.writes and not answers.writes and len(asked) == 3
    np.testing.assert_array_equal(writes.prompt_PS, shown[[1, 1]])
    texts = [tokenizer.decode(row[:n].tolist()) for row, n in zip(answers.prompt_PS, answers.prompt_len_P, strict=True)]
    assert texts == [f"9-4=;{problems[1].question}", problems[1].question]
    assert replace.take_R.tolist() in ([-1, -1, 1, 3], [-1, -1, 3, 1]) and not replace.begin_len_P.any()
    assert kept.texts == ["a", "b", right, right] and kept.rewards.tolist() == [1, 0, 1, 1]
    assert metrics == {"hint/prompts": 1, "hint/rescued": 1, "hint/rollouts": 1}
    assert done.sampled.forest == "learnt from" and done.sampled.stats.tokens == 30


def test_the_programs_of_a_step_with_hints_and_another_model_for_a_teacher():
    """Whose rollout runs, and who reads, under its own weights; the update is given their last ones, no copy."""
    path = "package:iiblpo_jax/data/assets/countdown"
    config = make_config(hint={"source": "teacher"}, teacher={"kind": "model", "path": path})
    mesh = meshes.make_mesh(config.mesh, devices=jax.devices())
    step, found = abstract_step(config, load_config("preset:smollm2-135m"), mesh), []

    def call(program):
        found.append(program)
        return jax.eval_shape(lambda *args: program.function(*args, **program.kwargs), *program.args)

    rows = step.trace(call)
    first, again = ["publish", "rollout", "inform"], ["publish", "rollout", "replace", "inform"]
    teachers = ["publish (teacher)", "rollout (teacher)"]
    assert [program.name for program in found] == [*first, *teachers, *again, "score", "update"]
    teacher = step.frozen.readers["teacher"]
    assert found[2].args[0]["teacher"] is found[3].args[0] is teacher and step.state.average is None
    assert found[4].kwargs["spec"].max_tokens == 8 and found[4].kwargs["spec"].roots == 1
    assert rows.extras["teacher_state"].shape == (*rows.mask_RT.shape, 64)
    assert found[-1].args[3] is teacher["embed"] and teacher["embed"].shape[1] == 64
    config.distill.coef = 0.0
    assert not abstract_step(config, load_config(path), mesh).programs.inform_spec.readers


def test_a_task_without_solutions_has_no_hints(straight):
    hinting = straight[3]._hinting
    sums = make_sums(seed=0)
    with pytest.raises(InputError, match=r"^hint\.source = solution makes hints of solutions of several steps and no"):
        dataclasses.replace(hinting, tasks={"sums": sums}).check()
    dataclasses.replace(hinting, tasks={"sums": sums}, source="teacher").check()
