"""What steps learn from: recorded rollouts come back as they were, and their first update is the on-line one."""

import dataclasses
import json
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from iiblpo_jax import InputError
from iiblpo_jax.common.jsonl import read_jsonl
from iiblpo_jax.defaults import default_config
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.decoder import bind, logits
from iiblpo_jax.results.report import trees
from iiblpo_jax.run import sources
from iiblpo_jax.run.metrics import MetricWriter
from iiblpo_jax.run.setup import set_up
from iiblpo_jax.run.trainer import Trainer
from iiblpo_jax.step.programs import Judged
from iiblpo_jax.update.importance import importance

QUIET = Console(quiet=True)
P, M, K, T = 4, 2, 1, 20
GROUP = M * (1 + K)
CAP = 1.05  # low enough to be reached


def make_config(**sections):
    """Plain branches, everything kept, hot enough for right and wrong answers; `section={key: value}` changes it."""
    config = default_config()
    config.task.options = {"k_min": 2, "k_max": 3, "train_size": 64, "heldout_size": 16}
    sizes = {
        "rollout": {"roots": M, "slots": 8, "refill_at": 3, "max_prompt": 8, "max_tokens": T, "top_p": 1.0},
        "branch": {"k": K, "replace": False},
        "ib": {"filter": "none"},
        "advantage": {"weight": "none"},
        "train": {"steps": 4, "prompts_per_step": P},
        "optim": {"lr": 1e-3},
        "update": {"minibatches": 1, "importance_cap": CAP},
        "eval": {"problems": 4, "samples": 1, "k": (1,), "greedy": False},
        "log": {"logprobs": True},
    }
    for name, values in [*sizes.items(), *sections.items()]:
        config[name].update(values)
    config.rollout.temperature = 1.6
    return config


def offline(files, **sections):
    return make_config(data={"recorded": str(files)}, **sections)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Three steps on-line: (their rollouts/, Forest and batch of step 1, metrics of step 1, state after it)."""
    folder = tmp_path_factory.mktemp("recorded")
    trainer = Trainer(make_config(), folder / "run", console=QUIET)
    pending = trainer._start(1)
    forest, batch = meshes.to_host(pending.sampled.forest), pending.batch
    with MetricWriter(folder / "run") as writer:
        metrics, columns = trainer._outcome(trainer._finish(pending))
        state = jax.device_get(trainer.state)
        writer.rollouts(1, columns)
        for step, _, columns in trainer.steps(2, 3):
            writer.rollouts(step, columns)
    trainer.close()
    return folder / "run" / "rollouts", forest, batch, metrics, state


@pytest.fixture
def in_file_order(monkeypatch):
    """Recorded groups are not shuffled."""
    monkeypatch.setattr(sources, "epochs", lambda items, *, seed: grain.MapDataset.source(items).repeat())


def lines_of(path: Path):
    return list(read_jsonl(path))


# -- what comes back --------------------------------------------------------------------------------------------------


def test_the_forest_comes_back(recorded, in_file_order, tmp_path):
    folder, forest, batch, *_ = recorded
    drawn = next(set_up(offline(folder / "step_000001.jsonl")).source(tmp_path))
    for name in ("tokens_PS", "length_P", "answer_PA", "answer_length_P", "cue_PQ", "cue_length_P", "problems"):
        np.testing.assert_array_equal(getattr(drawn.batch, name), getattr(batch, name), err_msg=name)
    found = meshes.to_host(drawn.asked.forest)
    for (
        name
    ) in "prompt_PS prompt_len_P tokens_RT length_R finish_R parent_R branch_at_R z_RZ fallback_R left_R".split():
        np.testing.assert_array_equal(getattr(found, name), getattr(forest, name), err_msg=name)
        assert getattr(found, name).dtype == getattr(forest, name).dtype, name
    mask_RT = np.arange(T) < forest.length_R[:, None]
    np.testing.assert_array_equal(found.raw_logp_RT, np.where(mask_RT, forest.raw_logp_RT, 0))
    assert not found.entropy_RT.any()


def names(source, steps):
    return [tuple(p.id for p in next(source).batch.problems) for _ in range(steps)]


def test_epochs_are_complete_and_in_new_orders(recorded, tmp_path):
    folder, *_ = recorded
    setup = set_up(offline(folder))
    first, second = (sorted(sum(names(source, 3), ())) for source in [setup.source(tmp_path)] * 2)
    assert (
        first
        == second
        == sorted(
            line["prompt_id"] for path in folder.iterdir() for line in lines_of(path) if line["trajectory"] % GROUP == 0
        )
    )
    orders = names(setup.source(tmp_path), 6)
    assert orders[:3] != orders[3:] and orders == names(setup.source(tmp_path), 6)
    assert setup.source(tmp_path).dropped == 0


def test_a_position_of_other_data_is_refused(recorded, tmp_path):
    folder, *_ = recorded
    state = set_up(offline(folder)).source(tmp_path).get_state()
    for config in (
        make_config(),
        offline(folder / "step_000001.jsonl"),
        offline(folder, train={"prompts_per_step": 2}),
    ):
        with pytest.raises(InputError, match="other training data"):
            set_up(config).source(tmp_path).set_state(state)


def test_a_prompt_twice_in_a_row_is_two_groups(recorded, in_file_order, tmp_path):
    rows = lines_of(recorded[0] / "step_000001.jsonl")
    for row in rows[GROUP : 2 * GROUP]:
        row["prompt_id"] = rows[0]["prompt_id"]
    source = set_up(offline(write(tmp_path, rows))).source(tmp_path)
    drawn = next(source)
    assert [p.id for p in drawn.batch.problems[:2]] == [rows[0]["prompt_id"]] * 2
    np.testing.assert_array_equal(drawn.asked.forest.parent_R, recorded[1].parent_R)


def test_long_prompts_are_left_out_and_counted(recorded, tmp_path):
    """4 tokens are a sum of two numbers: "6+5="."""
    folder, _, batch, *_ = recorded
    long = int((batch.length_P > 4).sum())
    assert 0 < long < P
    short = set_up(offline(folder / "step_000001.jsonl", rollout={"max_prompt": 4})).source(tmp_path)
    assert short.dropped == long and (next(short).batch.length_P == 4).all()


# -- the update -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(recorded, tmp_path_factory):
    """(metrics, columns, state, trainer) of an off-line step on step 1 of the recording, groups in their order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "epochs", lambda items, *, seed: grain.MapDataset.source(items).repeat())
        config = offline(recorded[0] / "step_000001.jsonl")
        trainer = Trainer(config, tmp_path_factory.mktemp("learned"), console=QUIET)
    weights_RT, rows = weights_of(trainer)
    metrics, columns = trainer.step(1)
    yield metrics, columns, jax.device_get(trainer.state), (weights_RT, rows)
    trainer.close()


def weights_of(trainer, *forms):
    """Importance weights [R,T], of the config's form and of others, and rows of the next step of a trainer, which stays
    there."""
    pending = trainer._start(1)
    graded, _ = trainer._refilled(pending)
    rows = pending.rest.send(Judged(jnp.asarray(graded.rewards), {})).rows
    trainer.source.set_state(trainer._position)
    gradient = trainer._programs.gradient.sized_for(rows.count)
    old_logp_RT, *_ = jax.jit(gradient.log_probs)(trainer.state.params, rows)
    forms = (gradient.settings.importance, *forms)
    settings = (dataclasses.replace(gradient.settings, importance=form) for form in forms)
    return jax.device_get((*(importance(rows, old_logp_RT, s) for s in settings), rows))


def test_the_first_update_is_the_online_one(recorded, learned):
    """Same weights, groups and order: pi_old is mu, so every weight is 1, and gradients and weights agree."""
    *_, online, state = recorded
    metrics, _, learned_state, (weights_RT, rows) = learned
    np.testing.assert_allclose(weights_RT[rows.mask_RT > 0], 1.0, atol=1e-4)
    assert np.abs(weights_RT[rows.mask_RT > 0] - 1).max() > 0  # it is computed, not left out
    assert online["update/grad_norm"] > 0.01
    for name in ("update/loss", "update/grad_norm", "update/entropy", "latent/weight_ess", "reward/mean"):
        assert metrics[name] == pytest.approx(online[name], rel=1e-4, abs=1e-6), name

    def moments(state):  # after one step Adam's mu is a tenth of the clipped gradient
        leaves = jax.tree_util.tree_leaves_with_path(state.opt_state)
        return [leaf for path, leaf in leaves if ".mu" in jax.tree_util.keystr(path)]

    assert moments(state)
    for ours, theirs in zip(moments(learned_state), moments(state), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    for ours, theirs in zip(*(jax.tree.leaves(s.params) for s in (learned_state, state)), strict=True):
        # AdamW turns the rounding noise of a vanishing gradient into a visible part of a step of size lr = 1e-3.
        np.testing.assert_allclose(ours, theirs, atol=3e-4)
        assert np.mean(np.abs(ours - theirs) > 1e-5) < 1e-3


def test_nothing_is_generated_and_names_stay(recorded, learned):
    metrics, *_ = learned
    assert set(metrics) == set(recorded[3])
    assert metrics["rollout/tokens"] == metrics["rollout/slot_utilisation"] == metrics["rollout/tokens_per_s"] == 0
    assert metrics["time/rollout_s"] < recorded[3]["time/rollout_s"]
    for name in "length_mean length_p95 truncated branches branch_fallback branch_copies branch_flips".split():
        assert metrics[f"rollout/{name}"] == recorded[3][f"rollout/{name}"], name
    assert metrics["mismatch/logp_max"] < 1e-4


def test_its_own_log_says_what_was_recorded(recorded, learned, tmp_path):
    """Log-probs of the behaviour and all else but entropies; the report reads the lines."""
    with MetricWriter(tmp_path) as writer:
        ours, theirs = lines_of(writer.rollouts(1, learned[1])), lines_of(recorded[0] / "step_000001.jsonl")
    for a, b in zip(ours, theirs, strict=True):
        assert list(a) == list(b) and list(a)[-2:] == ["logp", "left"] and len(a["logp"]) == len(a["tokens"])
        assert a.pop("entropy_mean") == 0 < b.pop("entropy_mean")
        assert a.pop("advantage") == pytest.approx(b.pop("advantage"))
        assert a == b
    assert [len(tree) for tree in trees(ours)] == [1 + K] * P * M


def behaviour_and_policy(trainer, rows):
    """Lists of (mu, pi_old) log-probs of whole responses: recorded ones, and those of a plain forward."""
    model = bind(trainer.model_config, trainer.state.params["policy"])
    prompts = {p.question: trainer.tokenizer.encode(p.question, add_special=True) for p in _problems(trainer)}
    rows = [(prompts[row["prompt_id"].partition("/")[2] + "="], row) for row in rows]
    width = max(len(prompt) + len(row["tokens"]) for prompt, row in rows)
    padded_RC = [[*prompt, *row["tokens"], *[0] * (width - len(prompt) - len(row["tokens"]))] for prompt, row in rows]
    z_RTV = np.asarray(logits(model, jnp.asarray(padded_RC)), np.float64) / 1.6
    for (prompt, row), z_TV in zip(rows, z_RTV, strict=True):
        z_TV[:, trainer.tokenizer.textless_ids(trainer.model_config.vocab_size)] = -np.inf
        logp_TV = (
            z_TV - np.log(np.exp(z_TV - z_TV.max(1, keepdims=True)).sum(1, keepdims=True)) - z_TV.max(1, keepdims=True)
        )
        at = len(prompt) - 1 + np.arange(len(row["tokens"]))
        yield np.array(row["logp"]), logp_TV[at, row["tokens"]]


def _problems(trainer):
    return [problem for _ in range(64 // P) for problem in next(trainer.source).batch.problems]


def test_another_policys_tokens_are_weighed(recorded, in_file_order, tmp_path):
    """exp(logp_old - logp_mu), capped, of every token of a policy two updates away, or of its whole response."""
    path = recorded[0] / "step_000003.jsonl"
    trainer = Trainer(offline(path), tmp_path, console=QUIET)
    weights_RT, whole_RT, rows = weights_of(trainer, "sequence_mask")
    log_ratios = [pi - mu for mu, pi in behaviour_and_policy(trainer, lines_of(path))]
    expected = [np.minimum(np.exp(log_ratio), CAP) for log_ratio in log_ratios]
    trainer.source.set_state(trainer._position)
    # What --replay compares a saved batch with.
    assert jax.tree.map(jnp.shape, trainer._abstract().rows()) == jax.tree.map(jnp.shape, rows)
    metrics, _ = trainer.step(1)
    trainer.close()
    for weight_T, length, wanted in zip(weights_RT, rows.length_R, expected, strict=True):
        np.testing.assert_allclose(weight_T[:length], wanted, rtol=1e-4)
    product_R = np.exp([log_ratio.sum() for log_ratio in log_ratios])
    assert 0 < (product_R > CAP).sum() < len(product_R)
    for weight_T, length, product in zip(whole_RT, rows.length_R, product_R, strict=True):
        np.testing.assert_allclose(weight_T[:length], product if product <= CAP else 0.0, rtol=1e-4)
    w = np.concatenate(expected)
    assert (w == CAP).any() and w.min() < 0.97
    assert metrics["latent/weight_ess"] == pytest.approx(w.sum() ** 2 / (len(w) * (w**2).sum()), rel=1e-4)


def test_unweighed_must_be_asked_for(recorded, tmp_path):
    rows = lines_of(recorded[0] / "step_000001.jsonl")
    for row in rows:
        del row["logp"]
    path = write(tmp_path, rows)
    for wanted in ({"update": {"importance_cap": CAP}, "log": {"logprobs": False}}, {"update": {"importance_cap": 0}}):
        with pytest.raises(InputError, match=r"1 has no logp.* log\.logprobs=True, .* update\.importance_cap=0 and"):
            set_up(offline(path, **wanted)).source(tmp_path)
    config = offline(path, update={"importance_cap": 0.0}, log={"logprobs": False})
    trainer = Trainer(config, tmp_path / "run", console=QUIET)
    weights_RT, _ = weights_of(trainer)
    trainer.close()
    assert (weights_RT == 1).all()


def test_what_branches_stand_for_comes_with_them(recorded, tmp_path):
    """Drawn without replacement they are weighed by it; a record that does not say how they were drawn is refused."""
    rows = lines_of(recorded[0] / "step_000001.jsonl")
    left = [row["left"] for row in rows]
    assert all((row["parent"] is None) == (row["left"] == 1) for row in rows) and 0 < min(left) < 0.9
    with pytest.raises(InputError, match=r":1 has a left, .* set branch\.replace=False as in the run"):
        set_up(offline(write(tmp_path, rows), branch={"k": K, "replace": True})).source(tmp_path)
    for wrong in (1.5, -0.1, "all", True):
        rows[1]["left"] = wrong
        with pytest.raises(InputError, match=r":2: left is no probability"):
            set_up(offline(write(tmp_path, rows))).source(tmp_path)
    del rows[1]["left"]
    with pytest.raises(InputError, match=r":2 has no left, .* set branch\.replace=True as in the run"):
        set_up(offline(write(tmp_path, rows))).source(tmp_path)


def test_resuming_in_the_middle_is_bit_exact(recorded, tmp_path):
    config = offline(recorded[0])

    def clockless(metrics):
        return {k: v for k, v in metrics.items() if not (k.startswith("time/") or k.endswith("tokens_per_s"))}

    trainer = Trainer(config, tmp_path, console=QUIET)
    results = []
    for step, metrics, _ in trainer.steps(1, 4):  # three steps are an epoch
        results.append(clockless(metrics))
        trainer.save(step, force=step == 2)
    state = jax.device_get(trainer.state)
    trainer.close()
    again = Trainer(config, tmp_path, console=QUIET)
    assert again.restore() == 2
    assert [clockless(metrics) for _, metrics, _ in again.steps(3, 4)] == results[2:]
    again.close()
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again.state), state)
    assert max(r["update/grad_norm"] for r in results[2:]) > 0


# -- bad input --------------------------------------------------------------------------------------------------------


def write(folder, rows):
    path = folder / "step_000001.jsonl"
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def change(number, **values):
    """A damage: other values in line `number`, from 1."""

    def damage(rows):
        rows[number - 1] |= values

    return damage


def cut(number):
    def damage(rows):
        rows[number - 1] = json.dumps(rows[number - 1])[:40] + "\n"

    return damage


def leave_out(number):
    def damage(rows):
        del rows[number - 1]

    return damage


def grown_branch(rows):
    """The first branch that has own tokens behind an inherited prefix, from 1."""
    return next(i for i, row in enumerate(rows, 1) if row["branch_at"])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut(3), r"step_000001\.jsonl:3 is not JSON .*; delete the lines of its prompt$"),
        (lambda rows: rows.insert(1, "[1]\n"), r":2 is no line of a rollout log; give files of the rollouts/ of a run"),
        (lambda rows: rows[1].pop("parent"), r":2 is no line of a rollout log"),
        (change(2, trajectory=True), r":2 is no line of a rollout log"),
        (change(1, branch_at=3), r":1 is no line of a rollout log"),  # a root that branches off
        (change(2, finish="eos", tokens=[], logp=[]), r":2 is no line of a rollout log"),
        (change(1, finish="length", tokens=[], logp=[]), r":1: a root without tokens; delete the lines"),
        (
            change(1, prompt_id="arithmetic/1"),
            r":1: prompt 'arithmetic/1' has 1 trajectories .* have 4; set rollout\.roots",
        ),
        (leave_out(6), r":5: prompt 'arithmetic/.*' has 1 trajectories and this config's groups have 4; .* or delete"),
        (change(5, tokens=[99], logp=[0.0]), r":5: token 99 is not in the model's vocabulary of 17; use a model with"),
        (change(5, tokens=[-1], logp=[0.0]), r":5: token -1 is not in"),
        (change(5, tokens=["1"], logp=[0.0]), r":5: token 1 is not in"),
        (change(5, tokens=[3] * 21), r":5: a response of 21 tokens and rollout\.max_tokens = 20; raise it"),
        (change(2, logp=None), r":2 has no logp, which tokens are weighed by; record with log\.logprobs=True, or ask"),
        (change(2, logp=[]), r":2: logp is not a log-probability a token"),
        (change(5, tokens=[3], logp=[float("nan")]), r":5: logp is not a log-probability a token \(1\); delete"),
        (change(5, tokens=[3], logp=[0.5]), r":5: logp is not a log-probability a token"),
        (
            change(2, parent=2),
            r":2: it grows on another trajectory than in this config's trees; set rollout\.roots and",
        ),
    ],
)
def test_damaged_files_are_refused_with_the_line_and_the_mend(recorded, tmp_path, damage, message):
    rows = lines_of(recorded[0] / "step_000001.jsonl")
    damage(rows)
    with pytest.raises(InputError, match=message) as caught:
        set_up(offline(write(tmp_path, rows))).source(tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_branch_begins_as_its_parent(recorded, tmp_path):
    rows = lines_of(recorded[0] / "step_000001.jsonl")
    number = grown_branch(rows)
    rows[number - 1]["tokens"][0] = (rows[number - 1]["tokens"][0] + 1) % 17
    with pytest.raises(
        InputError, match=rf":{number}: its first \d+ tokens are not those of its parent, .*:{number - 1};"
    ):
        set_up(offline(write(tmp_path, rows))).source(tmp_path / "run")


def test_prompts_of_other_tasks_are_refused(recorded, tmp_path):
    rows = lines_of(recorded[0] / "step_000001.jsonl")
    for row in rows[GROUP : 2 * GROUP]:
        row["prompt_id"] = "arithmetic/none"
    with pytest.raises(InputError, match=r":5: prompt_id 'arithmetic/none' is no training problem .* data\.seed as in"):
        set_up(offline(write(tmp_path, rows))).source(tmp_path / "run")


@pytest.mark.parametrize("roots", [1, 4])
def test_groups_of_another_size_are_refused(recorded, tmp_path, roots):
    config = offline(recorded[0], rollout={"roots": roots})
    with pytest.raises(
        InputError, match=rf":1: prompt .* has 4 trajectories and this config's groups have {2 * roots};"
    ):
        set_up(config).source(tmp_path)


def test_files_that_are_not_there_empty_or_the_runs_own(recorded, tmp_path):
    folder = recorded[0]
    for pattern in (tmp_path / "absent", tmp_path, tmp_path / "*.jsonl"):
        with pytest.raises(InputError, match=r"data\.recorded = '.*' finds no file; give a rollouts/ folder"):
            set_up(offline(pattern)).source(tmp_path)
    with pytest.raises(InputError, match="hold no rollouts; give files"):
        set_up(offline(write(tmp_path, ["\n"]))).source(tmp_path)
    with pytest.raises(InputError, match="writes over; use another --workdir"):
        set_up(offline(folder / "*.jsonl")).source(folder.parent)
