"""SPINE: which tokens learn, and the band on their entropy, against a loop."""

import jax
import numpy as np
import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.objectives import make_objective

OPTIONS = {"fraction": 0.5, "band_coef": 0.3, "low": 0.9, "high": 1.4}


def value_and_grads(objective, batch):
    def loss(logp, entropy):
        now = batch.replace(logp_RT=logp, entropy_RT=entropy)
        return objective.loss(now, objective.weights(now))[0]

    return jax.value_and_grad(loss, argnums=(0, 1))(batch.logp_RT, batch.entropy_RT)


def chosen(batch, fraction):
    """bool [R,T] in numpy."""
    mask, entropy = np.asarray(batch.rows.mask_RT) > 0, np.asarray(batch.entropy_RT)
    count = max(1, int(np.ceil(fraction * mask.sum())))
    return mask & (entropy >= np.sort(entropy[mask])[-count])


def test_the_band_by_hand(make_batch):
    batch = make_batch(3)
    on, entropy = chosen(batch, 0.5), np.asarray(batch.entropy_RT)
    options = OPTIONS | {"low": float(np.quantile(entropy[on], 0.3)), "high": float(np.quantile(entropy[on], 0.7))}
    spine = make_objective("spine", max_tokens=10, overrides=options)
    plain = make_objective("forking_tokens", max_tokens=10, overrides={"fraction": 0.5})
    (value, (d_logp, d_entropy)), (base, (base_logp, base_entropy)) = (
        value_and_grads(o, batch) for o in (spine, plain)
    )
    below, above = on & (entropy < options["low"]), on & (entropy > options["high"])
    assert below.any() and above.any() and (on & ~below & ~above).any()
    outside = (options["low"] - entropy)[below].sum() + (entropy - options["high"])[above].sum()
    assert value - base == pytest.approx(0.3 * outside / on.sum(), rel=1e-4)
    np.testing.assert_array_equal(d_logp, base_logp)
    assert not base_entropy.any()
    np.testing.assert_allclose(d_entropy, 0.3 / on.sum() * (above * 1.0 - below * 1.0), rtol=1e-6, atol=1e-9)


def test_only_forking_tokens_learn(make_batch):
    batch = make_batch(3)
    _, (d_logp, d_entropy) = value_and_grads(make_objective("spine", max_tokens=10, overrides=OPTIONS), batch)
    off = ~chosen(batch, 0.5)
    assert not np.asarray(d_logp)[off].any() and not np.asarray(d_entropy)[off].any()
    assert np.asarray(d_logp).any()


def test_with_all_tokens_and_no_band_it_is_grpo_to_the_bit(make_batch):
    off = make_objective("spine", max_tokens=10, overrides={"fraction": 1.0, "band_coef": 0.0, "clip_high": 0.2})
    ours, theirs = (value_and_grads(o, make_batch(4)) for o in (off, make_objective("grpo", max_tokens=10)))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_band_that_is_upside_down_is_refused():
    with pytest.raises(InputError, match=r"low = 2 exceeds objective\.options\.high = 1; lower it"):
        make_objective("spine", max_tokens=10, overrides={"low": 2, "high": 1})
