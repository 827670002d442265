"""From a config to static descriptions."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.data.arithmetic import make_arithmetic
from iiblpo_jax.data.countdown import make_countdown
from iiblpo_jax.defaults import default_config
from iiblpo_jax.model.files.loading import load_config
from iiblpo_jax.objectives.overlong import Overlong
from iiblpo_jax.step import specs
from iiblpo_jax.update.optimizer import Schedule
from iiblpo_jax.update.settings import UpdateSettings


def test_recorded_rollouts_are_weighed_everywhere_and_have_no_latents():
    c = default_config()
    c.latent.z = 4
    method = specs.objective(c)
    assert specs.uses_latents(c) and specs.update_settings(c, method).exact_rollout
    c.data.recorded = "runs/first/rollouts"
    assert not specs.uses_latents(c) and specs.score_spec(c, method).latent is None
    assert not specs.update_settings(c, method).exact_rollout


@pytest.mark.parametrize(
    ("platform", "precision", "exact"),
    [("cpu", None, True), ("gpu", None, False), ("tpu", "high", False), ("gpu", "highest", True)],
)
def test_float32_is_exact_where_its_products_are(platform, precision, exact):
    mesh = SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]))
    before = jax.config.values["jax_default_matmul_precision"]
    jax.config.update("jax_default_matmul_precision", precision)
    try:
        assert specs.multiplies_in_float32(mesh) is exact
    finally:
        jax.config.update("jax_default_matmul_precision", before)


def test_the_schedule_goes_by_rollouts_alone():
    """However a rollout is cut into optimizer steps; and with a length of its own whatever train.steps is."""
    c = default_config()
    c.optim.update({"schedule": "cosine", "lr": 2.0, "warmup": 2})
    wanted = Schedule(peak=2.0, kind="cosine", warmup=2, decay_steps=1000)
    for minibatches, epochs in ((1, 1), (4, 2), (32, 1)):
        c["update"].update({"minibatches": minibatches, "epochs": epochs})
        assert specs.schedule(c) == wanted
    c.train.steps, c.optim.decay_steps = 500, 1000
    assert specs.schedule(c) == wanted


def test_update_settings():
    c = default_config()
    c.model.dtype, c.attention.impl, c.latent.condition, c.branch.prefix_loss = (
        "bfloat16",
        "pallas",
        "conditioned",
        False,
    )
    c.rollout.update({"roots": 5, "temperature": 0.9, "max_prompt": 20, "max_tokens": 30, "weights": "int8"})
    c.rollout.dtype, c.branch.k, c.ib.filter = "bfloat16", 0, "none"
    c["update"].update({"epochs": 2, "microbatch": 8, "remat": False, "importance_floor": 0.5, "importance_cap": 0.0})
    method = specs.objective(c)
    assert specs.update_settings(c, method) == UpdateSettings(
        temperature=0.9,
        minibatches=4,
        epochs=2,
        pack_tokens=400,
        attention="pallas",
        microbatch=8,
        remat=False,
        condition="conditioned",
        importance="token_truncate",
        importance_floor=0.5,
        importance_cap=0.0,
        exact_rollout=False,
        prefix_loss=False,
        group_size=5,
        dtype="bfloat16",
    )
    c.update.packed = False
    assert specs.update_settings(c, method).pack_tokens == 0
    c.update.packed, c.update.microbatch = True, 0
    assert specs.update_settings(c, method).pack_tokens == 8192


def test_where_only_some_roots_have_branches_roots_are_the_measure():
    c = default_config()
    method = specs.objective(c)

    def found():
        return specs.score_spec(c, method).credit.selective, specs.update_settings(c, method).prefix_loss

    assert found() == (False, True)
    c.branch.solved = False
    assert found() == (True, False)
    c.branch.credit = "siblings"  # which has its own means, and no advantage on inherited tokens
    assert found() == (True, True)
    c.branch.update({"solved": True, "credit": "trajectory", "min_entropy": 0.5})
    assert found() == (True, False)
    c.branch.k = 0
    assert found() == (False, True)


def test_mara_goes_by_the_coefficient_of_the_kl():
    c = default_config()
    c.objective.name, c["update"].kl_coef = "mara", 0.25
    assert specs.objective(c).reward_shaping.keywords == {"beta": 0.25}


def test_plans_are_compared_where_there_are_some():
    c = default_config()
    countdown, arithmetic = make_countdown(seed=0, train_size=1, heldout_size=1), make_arithmetic(seed=0, train_size=1)
    c.objective.name = "darling"
    specs.check_plans(specs.objective(c), [countdown])
    with pytest.raises(InputError, match=r"darling compares the plans .* task arithmetic does not say .*use countdown"):
        specs.check_plans(specs.objective(c), [countdown, arithmetic])
    c.objective.name = "grpo"
    specs.check_plans(specs.objective(c), [arithmetic])


def test_likely_tokens_that_there_are_not():
    c = default_config()
    c.objective.name, c.objective.options.top_k = "dppo", 10
    model = load_config(c.model.path)
    specs.check_record(c, specs.objective(c), model)
    c.data.recorded = "runs"
    with pytest.raises(InputError, match=r"recorded rollouts \(data\.recorded\) do not have; set .*top_k=0"):
        specs.check_record(c, specs.objective(c), model)
    c.objective.options.top_k = 1000
    with pytest.raises(InputError, match=rf"the vocabulary has {model.vocab_size}; lower objective\.options\.top_k"):
        specs.check_record(c, specs.objective(c), model)


def test_who_reads_is_who_is_asked():
    c = default_config()
    model = load_config(c.model.path)

    def readers():
        found = specs.inform_spec(c, model, 0, needs=specs.objective(c).needs).readers
        return [(name, type(reader).__name__) for name, reader in found]

    assert readers() == []
    c.objective.name = "arm"
    assert readers() == [("policy", "PromptLogProbs")]
    c.update.kl_coef = 0.1
    assert readers() == [("reference", "LogProbs"), ("policy", "PromptLogProbs")]
    c.objective.name = "imentor"
    assert readers() == [("reference", "LogProbs"), ("novelty", "Errors")]
    c.objective.name = "grpo"
    assert readers() == [("reference", "LogProbs")]


def test_overlong_responses():
    c = default_config()
    c.rollout.max_tokens = 100
    assert not specs.score_spec(c, specs.objective(c)).filter.finished
    c.reward.overlong = "mask"
    assert specs.score_spec(c, specs.objective(c)).filter.finished
    c.reward.update({"overlong": "shape", "overlong_buffer": 20, "overlong_penalty": 0.5})
    shaping = specs.objective(c).reward_shaping
    assert isinstance(shaping, Overlong)
    assert (shaping.max_tokens, shaping.buffer, shaping.penalty) == (100, 20, 0.5)
    assert not specs.score_spec(c, specs.objective(c)).filter.finished
