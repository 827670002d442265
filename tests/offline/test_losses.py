"""Losses against their formulas in plain Python, their gradients in closed form."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.config import defaults
from iiblpo_jax.offline.losses import LOSSES, make_loss
from iiblpo_jax.offline.losses.interface import Read
from iiblpo_jax.offline.measures import diagnostics

TOKENS = np.array([[3, 2, 4], [5, 1, 2], [2, 0, 3], [4, 6, 1]])  # the third case has no rejected response


@pytest.fixture(scope="module")
def read():
    rng = np.random.default_rng(0)
    numbers = (-rng.uniform(0.2, 4, TOKENS.shape) * (TOKENS > 0) for _ in range(3))
    return Read(*(jnp.asarray(x, jnp.float32) for x in (TOKENS, *numbers)))


def by_hand(name, read, options, retain=0.0):
    tokens, logp, shift, reference = (np.asarray(x, np.float64) for x in jax.tree.leaves(read))
    gain = logp - reference

    def mean(f, cases):
        return sum(map(f, cases)) / len(cases)

    def log_sigmoid(x):
        return -math.log1p(math.exp(-x))

    pairs, forgotten, o = [0, 1, 3], [0, 1, 3], options
    loss = {
        "dpo": lambda: mean(lambda p: -log_sigmoid(o["beta"] * (gain[p, 0] - gain[p, 1])), pairs),
        "flex_dpo": lambda: mean(
            lambda p: -log_sigmoid(o["beta_chosen"] * gain[p, 0] - o["beta_rejected"] * gain[p, 1]), pairs
        ),
        "sft_dpo": lambda: mean(
            lambda p: -log_sigmoid(o["beta"] * (gain[p, 0] - gain[p, 1])) - o["weight"] * logp[p, 0], pairs
        ),
        "npo": lambda: mean(lambda p: -2 / o["beta"] * log_sigmoid(-o["beta"] * gain[p, 1]), forgotten),
        "gradient_ascent": lambda: logp[:, 1].sum() / tokens[:, 1].sum(),
        "dipo": lambda: mean(lambda p: -log_sigmoid(o["beta"] * shift[p, 1]), forgotten),
    }[name]()
    return loss - retain * logp[:, 2].sum() / tokens[:, 2].sum()


OPTIONS = {
    "dpo": {"beta": 0.3},
    "flex_dpo": {"beta_chosen": 0.4, "beta_rejected": 0.1},
    "sft_dpo": {"beta": 0.3, "weight": 0.7},
    "npo": {"beta": 0.2},
    "gradient_ascent": {},
    "dipo": {"beta": 0.5},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_loss_by_hand(name, read):
    for retain in (0.0, 0.6):
        loss = make_loss(name, OPTIONS[name], retain=retain)(read)
        assert float(loss) == pytest.approx(by_hand(name, read, OPTIONS[name], retain), rel=1e-5)


def test_the_registry_and_the_table_of_options_agree():
    assert LOSSES.keys() == defaults.LOSSES.keys() == OPTIONS.keys()
    for name, make in LOSSES.items():
        found = {key: p.default for key, p in inspect.signature(make).parameters.items()}
        assert found == {key: knob.default for key, knob in defaults.LOSSES[name].items()}


def test_the_gradient_of_dpo_in_closed_form(read):
    """-beta sigmoid(-margin) for the chosen response of each of n pairs over n, and its negative for the rejected."""
    slope = jax.grad(lambda x: make_loss("dpo", {"beta": 0.3})(read.replace(logp_PG=x)))(read.logp_PG)
    gain = np.asarray(read.logp_PG - read.reference_PG)
    weight = 0.3 / (1 + np.exp(0.3 * (gain[:, 0] - gain[:, 1]))) / 3
    weight[2] = 0
    np.testing.assert_allclose(slope, np.stack([-weight, weight, 0 * weight], 1), rtol=1e-5, atol=1e-9)


def test_flex_dpo_with_equal_strengths_is_dpo_to_the_bit(read):
    flex, dpo = make_loss("flex_dpo", {"beta_chosen": 0.3, "beta_rejected": 0.3}), make_loss("dpo", {"beta": 0.3})
    slopes = [jax.value_and_grad(lambda x, f=f: f(read.replace(logp_PG=x)))(read.logp_PG) for f in (flex, dpo)]
    jax.tree.map(np.testing.assert_array_equal, *slopes)


def test_npo_is_gradient_ascent_where_beta_is_small(read):
    """2 / beta softplus(beta x) has slope 1 + beta x / 2 + ..., here against the mean over responses."""
    slope = jax.grad(lambda x: make_loss("npo", {"beta": 1e-4})(read.replace(logp_PG=x)))(read.logp_PG)
    np.testing.assert_allclose(slope[:, 1], np.array([1, 1, 0, 1]) / 3, rtol=1e-3)


@pytest.mark.parametrize(("name", "correction"), [("dpo", 0.0), ("flex_dpo", math.log(0.1 / 0.4))])
def test_diagnostics_by_hand(name, correction, read):
    """The ratio of gradients is pi+ / pi- for DPO, times beta- / beta+ for Flex-DPO."""
    slope = jax.grad(lambda x: make_loss(name, OPTIONS[name])(read.replace(logp_PG=x)))(read.logp_PG)
    found = {key: float(x) for key, x in diagnostics(read, slope).items()}
    logp, gain = np.asarray(read.logp_PG)[[0, 1, 3]], np.asarray(read.gain_PG)[[0, 1, 3]]
    assert found["pairs/count"] == 3
    assert found["pairs/logp_chosen"] == pytest.approx(logp[:, 0].mean(), rel=1e-5)
    assert found["pairs/logp_rejected"] == pytest.approx(logp[:, 1].mean(), rel=1e-5)
    assert found["pairs/elsewhere"] == pytest.approx(1 - np.exp(logp[:, :2]).sum(1).mean(), rel=1e-4)
    ratio = (logp[:, 0] - logp[:, 1]).mean() + correction
    assert found["pairs/log_gradient_ratio"] == pytest.approx(ratio, rel=1e-4)
    margin = gain[:, 0] - gain[:, 1]
    assert found["pairs/margin"] == pytest.approx(margin.mean(), rel=1e-4)
    assert found["pairs/accuracy"] == pytest.approx((margin > 0).mean())


def test_a_loss_that_leaves_the_chosen_alone_has_no_ratio(read):
    slope = jax.grad(lambda x: make_loss("npo", {})(read.replace(logp_PG=x)))(read.logp_PG)
    assert float(diagnostics(read, slope)["pairs/log_gradient_ratio"]) == 0
