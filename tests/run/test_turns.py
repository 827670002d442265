"""Steps of a run whose turns a calculator answers: the shipped model of `arithmetic` speaks to it untaught."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from rich.console import Console

from iiblpo_jax import load_model
from iiblpo_jax.common.errors import InputError
from iiblpo_jax.config.validation import mistakes
from iiblpo_jax.defaults import default_config
from iiblpo_jax.devices.mesh import make_mesh
from iiblpo_jax.environments.interface import SEEN
from iiblpo_jax.objectives.rows import TURN
from iiblpo_jax.planning.shapes import abstract_step
from iiblpo_jax.rollout.forest import response_tokens
from iiblpo_jax.run.rollout_log import LOGPROBS
from iiblpo_jax.run.trainer import Trainer
from iiblpo_jax.step import specs
from iiblpo_jax.step.programs import Judged

QUIET = Console(file=io.StringIO())


def make_config(**sections):
    """Branches off whatever turn, the credit of TSPO; `section={key: value}` changes it."""
    config = default_config()
    config.task.name = "calculator"
    config.task.options = {"k_min": 3, "k_max": 4, "train_size": 64, "heldout_size": 16}
    sizes = {
        "rollout": {
            "roots": 2,
            "slots": 8,
            "max_prompt": 12,
            "max_tokens": 32,
            "top_p": 1.0,
            "temperature": 1.0,
            "unroll": False,
        },
        "turns": {"most": 3, "observation": 5},
        "branch": {"k": 1},
        "objective": {"name": "tspo"},
        "train": {"steps": 3, "prompts_per_step": 4},
        "optim": {"lr": 1e-4},
        "update": {"minibatches": 1},
        "eval": {"problems": 4, "samples": 1, "k": (1,), "greedy": False},
        "log": {"entropies": True, "logprobs": True},
    }
    sizes["rollout"]["unroll"] = False
    for name, values in [*sizes.items(), *sections.items()]:
        config[name].update(values)
    return config


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Three steps, a checkpoint after the first, an evaluation: (workdir, metrics, columns, last state, evaluation)."""
    workdir = tmp_path_factory.mktemp("run")
    trainer = Trainer(make_config(), workdir, console=QUIET)
    assert trainer.restore() is None
    found = []
    for step, metrics, columns in trainer.steps(1, 3):
        found.append((metrics, columns))
        trainer.save(step, force=step == 1)
    evaluated = trainer.evaluate()
    state = jax.device_get(trainer.state)
    trainer.close()
    return workdir, found, state, evaluated


def test_every_sum_that_was_asked_for_is_right(straight):
    """Whatever stands between an `=` and the next `;` is what the calculator says, in transcripts of the log too."""
    _, found, *_ = straight
    asked = 0
    for _, columns in found:
        for text, tokens, logprobs in zip(columns["text"], columns["tokens"], columns[LOGPROBS], strict=True):
            assert len(tokens) == len(logprobs)
            for turn in text.split(";")[:-1][:3]:
                expression, equals, value = turn.rpartition("=")
                if not equals or "error" in text or not expression.replace("+", "").isdigit():
                    break
                if expression.count("=") == 0 and all(expression.split("+")):
                    assert sum(map(int, expression.split("+"))) == int(value)
                    asked += 1
    assert asked > 20


def test_a_plan_of_a_step_has_its_programs():
    config = make_config()
    model, _ = load_model(config.model.path)
    step = abstract_step(config, model.config, make_mesh(config.mesh, prompts=4))
    names = []

    def shapes(program):
        names.append(program.name)
        return jax.eval_shape(lambda *args: program.function(*args, **program.kwargs), *program.args)

    rows = step.trace(shapes)
    assert names == ["publish", "rollout", "turn", "grown", "inform", "score", "update"]
    assert rows.extras[TURN].shape == rows.mask_RT.shape == (16, 32)


def test_metrics_say_what_came_of_the_turns(straight):
    metrics = [metrics for metrics, _ in straight[1]]
    assert all(0 < m["turns/answered"] <= 3 and 0 < m["turns/given"] < 1 for m in metrics)
    assert all(m["turns/done"] == 0 for m in metrics)
    assert all(0 <= m["turns/rescued"] <= 1 and 0 <= m["turns/near_miss"] <= 1 for m in metrics)
    assert 0 <= straight[3]["eval/calculator/pass@1"] <= 1


@pytest.fixture(scope="module")
def resumed(straight):
    """The run again from its checkpoint on: (trainer, metrics)."""
    trainer = Trainer(make_config(), straight[0], console=QUIET)
    assert trainer.restore() == 1
    yield trainer, [metrics for _, metrics, _ in trainer.steps(2, 3)]
    trainer.close()


def test_a_resumed_run_ends_where_the_straight_one_does_to_the_bit(straight, resumed):
    _, found, state, _ = straight
    trainer, again = resumed
    for one, other in zip(found[1:], again, strict=True):
        clock = {name for name in other if name.startswith("time/") or name.endswith("tokens_per_s")}
        assert {k: v for k, v in one[0].items() if k not in clock} == {k: v for k, v in other.items() if k not in clock}
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(trainer.state), state)


def test_nothing_is_learnt_from_observations(resumed):
    """Whatever the rollout's log-probs and the advantages are there, the new weights are the same to the bit."""
    trainer, _ = resumed
    done = trainer._start(4)
    forest = done.sampled.forest
    said = response_tokens(forest, observations=False)
    assert sum(map(len, said)) < sum(map(len, response_tokens(forest)))
    reward_R = jnp.arange(forest.length_R.shape[0], dtype=jnp.float32) % 2
    rows = done.rest.send(Judged(reward_R, {SEEN: jnp.asarray(done.talk.heard(forest).seen_R)})).rows
    given_RT = (rows.extras[TURN] < 0) & (jnp.arange(rows.t) < rows.length_R[:, None])
    assert given_RT.any() and not (given_RT & ((rows.mask_RT > 0) | (rows.own_mask_RT > 0))).any()
    other = rows.replace(
        raw_logp_RT=jnp.where(given_RT, -9.0, rows.raw_logp_RT), advantage_R=jnp.where(given_RT, 7.0, rows.advantage_RT)
    )
    before, weights = jax.device_get(trainer.state.params), []
    for some in (rows, other):
        state = jax.tree.map(jnp.copy, trainer.state)  # it is donated
        weights.append(jax.device_get(trainer._programs.update(state, some, jax.random.key(0), None)[0].params))
    jax.tree.map(np.testing.assert_array_equal, *weights)
    assert any((x != y).any() for x, y in zip(*map(jax.tree.leaves, (before, weights[0])), strict=True))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"ib": {"estimator": "likelihood"}}, "would score observations as if the policy had said them"),
        ({"train": {"refills": 1}}, "turns.most and train.refills do not go together"),
        ({"latent": {"z": 4}}, "latent.z is fitted to responses of one turn"),
        ({"turns": {"observation": 32}}, "turns.observation = 32 is not below rollout.max_tokens = 32"),
        ({"turns": {"most": 0}}, "objective.name = tspo credits turns and turns.most = 0 has none"),
        ({"data": {"recorded": "runs"}, "log": {"entropies": False}}, "turns.most asks an environment"),
    ],
)
def test_what_does_not_go_with_turns_is_refused(sections, message):
    [line] = mistakes(make_config(**sections))
    assert message in line


def test_several_devices_are_refused():
    mesh = AbstractMesh((2, 1, 1, 1), ("data", "fsdp", "sequence", "tensor"))
    with pytest.raises(InputError, match=r"turns\.most = 3 answers turns on one device and the mesh has 2"):
        specs.check_mesh(make_config(), mesh)


def test_a_task_nobody_answers_is_refused_before_anything_is_compiled(tmp_path):
    config = make_config(task={"name": "arithmetic", "options": {"train_size": 64, "heldout_size": 16}})
    with pytest.raises(
        InputError, match=r"task 'arithmetic' has no environment to answer its turns; set turns\.most=0"
    ):
        Trainer(config, tmp_path, console=QUIET)
