"""Whole steps of a run on the embedded model: resuming, both conditions, plain GRPO, the log."""

import io
import json
import shutil
import signal
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from rich.console import Console

from iiblpo_jax import InputError, load_model
from iiblpo_jax.common.jsonl import plain as plain_json
from iiblpo_jax.defaults import default_config
from iiblpo_jax.latents.storage import save_latents
from iiblpo_jax.model.decoder import params_of
from iiblpo_jax.model.steering.cvae import CVAE
from iiblpo_jax.model.steering.psa import PSA, bind_psa
from iiblpo_jax.rewards.scorer import Grades
from iiblpo_jax.run import trainer as trainer_module
from iiblpo_jax.run.checkpoints import Checkpoints
from iiblpo_jax.run.metrics import MetricWriter
from iiblpo_jax.run.trainer import Trainer

ROOT = Path(__file__).parents[2]
QUIET = Console(quiet=True)
KEYS = (
    "step prompt_id trajectory parent branch_at text tokens reward correct entropy_mean ib_answer ib_prompt ib_score "
    "kept advantage finish question gold z code entropies"
).split()
OFF = {
    "branch": {"k": 0},
    "ib": {
        "estimator": "none",
        "filter": "none",
        "reward_coef": 0.0,
        "entropy_coef": 0.0,
        "keep_contrast": False,
    },
    "advantage": {"weight": "none"},
}


def make_config(**sections):
    """IIB-LPO hot enough that groups hold right and wrong answers; `section={key: value}` changes it."""
    config = default_config()
    config.task.options = {"k_min": 2, "k_max": 3, "train_size": 64, "heldout_size": 16}
    sizes = {
        "rollout": {
            "roots": 2,
            "slots": 8,
            "refill_at": 3,
            "max_prompt": 8,
            "max_tokens": 20,
            "top_p": 1.0,
            "temperature": 1.6,
        },
        "ib": {"estimator": "likelihood", "filter": "score"},
        "branch": {"k": 1},
        "latent": {"z": 4, "hidden": 8},
        "psa": {"half_life": 8.0},
        "train": {"steps": 4, "prompts_per_step": 4},
        "optim": {"lr": 1e-4, "psa_lr": 1e-4},
        "update": {"minibatches": 1},
        "eval": {"problems": 4, "samples": 1, "k": (1,), "greedy": False},
        "log": {"entropies": True},
    }
    for name, values in [*sizes.items(), *sections.items()]:
        config[name].update(values)
    return config


@pytest.fixture(scope="module")
def latent_dir(tmp_path_factory):
    """Latents of the embedded model, not trained but far from silent."""
    model, _ = load_model(default_config().model.path)
    psa = params_of(PSA(model.config, 4, 3, rngs=nnx.Rngs(1)))
    psa["gain"] = 0.3 * jax.random.normal(jax.random.key(2), psa["gain"].shape)
    directory = tmp_path_factory.mktemp("made") / "latent"
    cvae = CVAE(model.config.d_model, 4, 8, rngs=nnx.Rngs(3))
    save_latents(directory, model.config, params_of(model), cvae, bind_psa(psa, model.config), settings={}, metrics={})
    return directory


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, latent_dir):
    path = tmp_path_factory.mktemp("run")
    shutil.copytree(latent_dir, path / "latent")
    return path


@pytest.fixture(scope="module")
def straight(workdir):
    """Four steps as a run takes them, a checkpoint after step 2: (results of each, last state, evaluation after 2)."""
    trainer = Trainer(make_config(), workdir, console=QUIET)
    assert trainer.restore() is None
    results = []
    for step, metrics, columns in trainer.steps(1, 4):
        results.append((metrics, columns))
        assert int(trainer.state.step) == step == len(results)
        if step == 2:
            evaluated = trainer.evaluate()
        trainer.save(step, force=step == 2)
    state = jax.device_get(trainer.state)
    assert trainer.close() == 2
    return results, state, evaluated


def is_of_the_clock(name):
    return name.startswith("time/") or name.endswith("tokens_per_s")


def test_a_trainer_refuses_what_the_command_line_does(tmp_path):
    wrong = make_config(train={"steps": 0}, rollout={"roots": 1}, branch={"k": 0})
    with pytest.raises(
        InputError, match=r"^2 mistakes: \(1\) train\.steps = 0; use 1 or more; \(2\) rollout\.roots = 1"
    ):
        Trainer(wrong, tmp_path / "run")
    assert not any(tmp_path.iterdir())


def without_clock(metrics):
    return {name: value for name, value in metrics.items() if not is_of_the_clock(name)}


def test_what_was_new_to_a_run_is_not_new_to_its_resume(tmp_path):
    """i-MENTOR's networks and their optimizer are in the checkpoint; another method has no use for them."""
    codes = {"n": 2, "others": 1, "dependence": 0.5}  # whose embeddings are a part of the policy
    config = make_config(**OFF, latent={"z": 0}, objective={"name": "imentor"}, rollout={"roots": 4}, codes=codes)
    trainer = Trainer(config, tmp_path, console=QUIET)
    begun, embed_VD = jax.device_get((trainer.state.novelty, trainer.state.params["policy"]["embed"]))
    for step, metrics, _ in trainer.steps(1, 2):
        assert metrics["update/skipped"] == 0 and 0 < abs(metrics["latent/information"]) <= np.log(2)
        assert metrics["mismatch/logp_max"] < 1e-4
        trainer.save(step, force=step == 1)
    straight = jax.device_get(trainer.state)
    trainer.close()
    assert (straight.params["policy"]["embed"][-2:] != embed_VD[-2:]).any(1).all()
    assert any(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (begun, straight.novelty)), strict=True))

    resumed = Trainer(config, tmp_path, console=QUIET)
    assert resumed.restore() == 1
    resumed.step(2)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed.state), straight)
    resumed.close()

    config.objective.name = "grpo"
    other = Trainer(config, tmp_path, console=QUIET)
    with pytest.raises(
        InputError, match=r"has novelty\..* and this config makes it .*use the config the run began with"
    ):
        other.restore()
    other.close()


def test_resuming_is_bit_exact(straight, workdir):
    """And steps taken one by one, each waited for, are those of a run that has the next rollout under way."""
    results, state, evaluated = straight
    trainer = Trainer(make_config(), workdir, console=QUIET)
    assert trainer.restore() == 2
    assert without_clock(trainer.evaluate()) == without_clock(evaluated)
    for step in (3, 4):
        metrics, columns = trainer.step(step)
        expected, expected_columns = results[step - 1]
        assert without_clock(metrics) == without_clock(expected)
        for name in columns:
            assert plain_json(columns[name]) == plain_json(expected_columns[name]), name
    trainer.close()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(trainer.state), state)
    assert int(state.step) == 4


def test_the_phases_of_a_step_follow_each_other(straight):
    """Behind the rollout, on the clock of the host: together they are no longer than the step."""
    for metrics, _ in straight[0]:
        assert metrics["time/verifier_s"] == 0.0  # sums are compared in this process
        assert metrics["time/step_s"] >= sum(metrics[f"time/{name}_s"] for name in ("reward", "score", "update"))


def test_the_steps_learn_something(straight):
    """Else resuming bit-exactly would prove little: there were gradients, before and after, and z had an effect."""
    results, state, _ = straight
    norms = [metrics["update/grad_norm"] for metrics, _ in results]
    assert max(norms[:2]) > 0 and max(norms[2:]) > 0
    assert not any(metrics["update/skipped"] for metrics, _ in results)
    model, _ = load_model(default_config().model.path)
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), state.params["policy"], params_of(model))
    assert min(jax.tree.leaves(moved)) > 1e-5
    assert any(abs(metrics["latent/weight_ess"] - 1) > 1e-3 for metrics, _ in results)


def test_rollout_and_update_agree(straight):
    """`marginal`: without z their log-probs are the same numbers."""
    for metrics, _ in straight[0]:
        assert metrics["update/ratio_mean"] == 1.0  # one optimizer step a rollout: the policy still is pi_old
        assert metrics["mismatch/logp_max"] < 1e-4


def test_metrics_have_the_documented_names(straight):
    names = set(straight[0][0][0])
    documented = {
        "reward": "mean pass@1 pass@group root_mean root_pass@1 root_pass@group frac_zero_std frac_mixed frac_kept",
        "rollout": "tokens length_mean length_p95 truncated entropy slot_utilisation branches branch_fallback "
        "branch_suffix branch_same_token branch_copies branch_flips tokens_per_s",
        "ib": "answer prompt score kept_score kept_correct auc_correct corr_length contrast_rescued",
        "update": "loss grad_norm ratio_mean clip_low clip_high kl_ref entropy empty empty_steps tokens_per_s",
        "optim": "lr",
        "mismatch": "logp_mean logp_max",
        "time": "rollout_s reward_s score_s update_s",
    }
    assert {f"{group}/{name}" for group, line in documented.items() for name in line.split()} <= names


def test_the_rollout_log(straight, tmp_path):
    with MetricWriter(tmp_path) as writer:
        path = writer.rollouts(1, straight[0][0][1])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 4 * 2 * 2 and all(list(row) == KEYS for row in rows)
    tokenizer = load_model(default_config().model.path)[1]
    for row in rows:
        own = row["tokens"][:-1] if row["finish"] == "eos" else row["tokens"]
        assert tokenizer.decode(own) == row["text"]
        assert row["finish"] == "eos" or len(own) == 20
        terms = row["prompt_id"].removeprefix("arithmetic/").split("+")
        assert row["correct"] == (row["text"].rpartition("#")[2] == str(sum(map(int, terms))) and "#" in row["text"])
        assert row["question"] == row["prompt_id"].removeprefix("arithmetic/") + "="
        assert row["gold"] == str(sum(map(int, terms))) and row["code"] is None
        assert len(row["entropies"]) == len(row["tokens"]) and min(row["entropies"]) >= 0
        entropies = row["entropies"][row["branch_at"] or 0 :]
        assert sum(entropies) / len(entropies) == pytest.approx(row["entropy_mean"], rel=1e-5)
        if row["trajectory"] % 2 == 0:
            assert row["parent"] is row["branch_at"] is row["z"] is None
        else:
            root, at = rows[row["parent"]], row["branch_at"]
            assert row["parent"] == row["trajectory"] - 1 and root["prompt_id"] == row["prompt_id"]
            assert 1 <= at < len(root["tokens"]) and row["tokens"][:at] == root["tokens"][:at]
            assert len(row["z"]) == 4 and any(row["z"])
    for start in range(0, 16, 4):
        assert sum(row["kept"] for row in rows[start : start + 4]) == 2
    assert all(row["advantage"] == 0 for row in rows if not row["kept"])


def test_conditioned_sees_the_distribution_that_sampled(workdir):
    """Branches of branches, two on two: with z injected again along every path, every token of every branch has the
    log-prob that the rollout recorded."""
    branches = {"k": 2, "parent": "previous", "depth": 2, "credit": "tree", "min_suffix": 1}
    trainer = Trainer(make_config(branch=branches, latent={"condition": "conditioned"}), workdir, console=QUIET)
    gain = np.asarray(trainer.state.params["psa"]["gain"])
    metrics, columns = trainer.step(1)
    trainer.close()
    assert metrics["update/ratio_mean"] == 1.0 and metrics["update/grad_norm"] > 0 and not metrics["update/skipped"]
    assert metrics["mismatch/logp_max"] < 1e-4 and metrics["rollout/branches"] == 6
    assert 0 < metrics["rollout/branch_fallback"] < 1 and columns["kept"].any()  # both kinds are among them
    assert np.abs(gain - np.asarray(trainer.state.params["psa"]["gain"])).max() > 0  # the projections learn too
    parent_PMJ = np.asarray(columns["parent"]).reshape(4, 2, 7)
    np.testing.assert_array_equal(parent_PMJ[1, 1] - 21, [-22, 0, 1, 1, 0, 4, 4])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """One step of GRPO, everything else off: (folder, metrics, columns, trainer)."""
    folder = tmp_path_factory.mktemp("grpo")
    trainer = Trainer(make_config(**OFF, rollout={"roots": 4}), folder, console=QUIET)
    metrics, columns = trainer.step(1)
    yield folder, metrics, columns, trainer
    trainer.close()


def test_plain_grpo_computes_nothing_else(plain):
    folder, metrics, columns, trainer = plain
    assert not [name for name in metrics if name.startswith("ib/")] and metrics["latent/weight_ess"] == 1.0
    assert set(trainer.state.params) == {"policy"} and not (folder / "latent").exists()
    assert columns["ib_answer"] == columns["ib_prompt"] == columns["ib_score"] == [None] * 16
    assert columns["kept"].all() and (np.asarray(columns["parent"]) == -1).all()
    reward_PG = np.asarray(columns["reward"], np.float64).reshape(4, 4)
    spread = reward_PG - reward_PG.mean(1, keepdims=True)
    expected = spread / (reward_PG.std(1, ddof=1, keepdims=True) + 1e-6)
    assert np.ptp(reward_PG) > 0
    np.testing.assert_allclose(columns["advantage"], expected.ravel(), rtol=1e-5, atol=1e-6)


def test_the_microbatch_split_changes_nothing(plain, tmp_path):
    _, metrics, _, whole = plain
    trainer = Trainer(make_config(**OFF, rollout={"roots": 4}, update={"microbatch": 2}), tmp_path, console=QUIET)
    split, _ = trainer.step(1)
    trainer.close()
    for name in ("update/loss", "update/grad_norm", "update/entropy"):
        assert split[name] == pytest.approx(metrics[name], rel=1e-5, abs=1e-7), name

    def moments(t):
        return jax.tree_util.tree_leaves_with_path(jax.device_get(t.state.opt_state))

    for (path, a), (_, b) in zip(moments(trainer), moments(whole), strict=True):
        # Gradients agree to 1e-5; their squares, Adam's nu, have twice the relative error.
        near = 2e-5 if ".nu" in jax.tree_util.keystr(path) else 1e-5
        np.testing.assert_allclose(a, b, atol=near * np.abs(b).max())

    # AdamW turns the rounding noise of a vanishing gradient into a visible part of a step of size lr = 1e-4.
    def params(t):
        return jax.tree.leaves(jax.device_get(t.state.params))

    for a, b in zip(params(trainer), params(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5)
        assert np.mean(np.abs(a - b) > 1e-6) < 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"seed": 5}}, "other training data"),  # its position would mean nothing
        ({"train": {"steps": 1}}, r"has 2 steps done and train\.steps = 1; raise it, or use another --workdir$"),
        (
            {"latent": {"z": 8}},
            r"was trained with latent\.kind = gaussian, latent\.z = 4, psa\.layers = 3 and the config",
        ),
    ],
)
def test_a_refused_resume_leaves_the_workdir_as_it_was(straight, workdir, change, message):
    from iiblpo_jax import train  # not above: other tests run this file for its make_config

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(InputError, match=message):
        train.main(make_config(**change), workdir)
    signal.signal(signal.SIGTERM, handler)
    assert not (workdir / "config.json").exists() and not (workdir / "metrics.jsonl").exists()


def test_the_next_rollout_is_under_way_while_a_step_is_written_down(plain, monkeypatch):
    """And a run that is told to stop, or left alone, has lost no prompts. From here on this trainer has moved."""
    *_, trainer = plain
    start, started, forests = trainer._start, {}, []

    def watched(step):
        assert all(forest() is None for forest in forests), "two Forests at a time"
        pending = start(step)
        started[step] = pending.sampled.stats, pending.batch.problems
        forests.append(weakref.ref(pending.sampled.forest))
        return pending

    monkeypatch.setattr(trainer, "_start", watched)
    seen = []
    for step, metrics, _ in trainer.steps(2, 9, stop=lambda: len(started) == 2):
        seen.append((step, list(started)))
        assert metrics["rollout/tokens"] == int(started[step][0].tokens)
    assert seen == [(2, [2, 3]), (3, [2, 3])]  # stopped: no rollout of step 4

    for _ in trainer.steps(4, 9):
        break
    assert list(started) == [2, 3, 4, 5]
    assert next(trainer.source).batch.problems == started[5][1]


def test_the_memory_report(plain, monkeypatch):
    """The new state lies where the old one lay, and too little memory is said before anything runs."""
    *_, trainer = plain
    out, position = io.StringIO(), trainer._position
    monkeypatch.setattr(trainer_module, "device_limit", lambda: 2**22)
    with pytest.raises(InputError, match=r"^\w+ needs .* GiB a device and there are 0\.00 GiB; "):
        trainer.memory_report(Console(file=out, width=120))
    lines = [line.replace("│", " ").split() for line in out.getvalue().splitlines() if line.startswith("│")]
    donated = {name: float(rest[2]) for name, *rest in lines}
    assert list(donated) == ["publish", "rollout", "inform", "score", "update"]
    state = sum(leaf.nbytes for leaf in jax.tree.leaves(trainer.state)) / 2**20
    assert donated["update"] == pytest.approx(state, abs=0.1) and state > 1
    assert trainer.source.get_state() == position


def test_what_no_text_has_is_no_part_of_the_policy(plain):
    """However likely the model takes `<pad>` to be: rollout and update leave it out, and no gradient comes of it."""
    *_, trainer = plain
    policy, pad = trainer.state.params["policy"], trainer.tokenizer.pad_id
    likely_D = 2.0 * policy["embed"].mean(0) + 3.0 * policy["embed"][trainer.tokenizer.encode("1")[0]]
    embed_VD = policy["embed"].at[pad].set(likely_D)
    trainer.state = trainer.state.replace(params=trainer.state.params | {"policy": {**policy, "embed": embed_VD}})
    metrics, columns = trainer.step(6)
    assert not any(pad in tokens for tokens in columns["tokens"])
    assert metrics["mismatch/logp_max"] < 1e-4 and metrics["update/grad_norm"] > 0
    assert metrics["update/entropy"] == pytest.approx(metrics["rollout/entropy"], rel=1e-3)
    decayed_D = trainer.state.params["policy"]["embed"][pad]  # by AdamW, of which a step is 1e-4
    np.testing.assert_allclose(decayed_D, likely_D, rtol=1e-5)


def test_a_group_without_spread_is_counted(plain, monkeypatch):
    *_, trainer = plain

    def rewards(problems, texts, **_):
        undecided = np.full(len(texts), np.nan, np.float32)
        return Grades(np.ones(len(texts), np.float32), {"verdict": undecided, "seconds": undecided}, {})

    monkeypatch.setattr(trainer.scorer, "score", rewards)
    trainer._counts = {"bad_steps": 0, "zero_std_steps": 0}
    counts = [metrics["reward/zero_std_steps"] for _, metrics, _ in trainer.steps(2, 3)]
    assert counts == [1, 2]


def test_rollouts_with_nothing_to_learn_from_stop_the_run(plain, monkeypatch, tmp_path):
    """They change nothing; the last of too many is saved, and whoever resumes from it begins to count again."""
    *_, trainer = plain

    def right(problems, texts, **_):
        undecided = np.full(len(texts), np.nan, np.float32)
        return Grades(np.ones(len(texts), np.float32), {"verdict": undecided, "seconds": undecided}, {})

    before, found = jax.device_get(trainer.state), []
    checkpoints = Checkpoints(tmp_path, keep=1, every=0)
    monkeypatch.setattr(trainer, "_checkpoints", checkpoints)
    monkeypatch.setattr(trainer.scorer, "score", right)
    monkeypatch.setitem(trainer.config.train, "max_empty_steps", 3)
    monkeypatch.setattr(trainer, "_empty_steps", 0)
    with pytest.raises(InputError, match=r"^step 4: train\.max_empty_steps = 3 .* right; use harder problems, or stop"):
        for step, metrics, _ in trainer.steps(2, 9):
            found.append((step, metrics["update/empty"], metrics["update/empty_steps"], metrics["update/skipped"]))
    assert found == [(2, 1, 1, 0), (3, 1, 2, 0), (4, 1, 3, 0)]
    after = jax.device_get(trainer.state)
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.opt_state), (before.params, before.opt_state))
    assert (after.step, after.moved) == (before.step + 3, before.moved)
    assert trainer.restore() == 4 and trainer._empty_steps == 0
    checkpoints.close()


def test_updates_that_are_not_finite_change_nothing_and_stop_the_run(plain, monkeypatch):
    """Last user of this trainer: its weights are spoilt here."""
    folder, *_, trainer = plain
    policy = {**trainer.state.params["policy"], "final_norm": trainer.state.params["policy"]["final_norm"] * np.nan}
    trainer.state = trainer.state.replace(params={"policy": policy})
    before = jax.device_get(trainer.state.params)
    found, saved = [], []
    monkeypatch.setattr(trainer._checkpoints, "save", lambda step, *_, **__: saved.append(step))
    with pytest.raises(InputError, match=r"step 6: 5 updates in a row.*lower optim\.lr"):
        for step, metrics, _ in trainer.steps(2, 9):
            found.append((step, metrics["update/skipped"], metrics["update/bad_steps"]))
            trainer.save(step, force=step == 4)
    assert found == [(2, 1, 1), (3, 1, 2), (4, 1, 3), (5, 1, 4)] and saved == [4]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(trainer.state.params), before)
    out = io.StringIO()
    trainer.replay(folder / "bad_step_000006.npz", Console(file=out, width=120))
    assert "loss nan" in out.getvalue() and "16 rows not finite" in out.getvalue()
