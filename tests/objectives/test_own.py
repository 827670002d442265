"""Methods that `objective.path` names, refused before anything is compiled where they do not work."""

from pathlib import Path

import jax.numpy as jnp
import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.objectives import make_objective
from iiblpo_jax.objectives.own import _rows

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_objective.py"
GRPO = """
    import dataclasses
    from iiblpo_jax.objectives.grpo import grpo
    def make(*, max_tokens, weight=1.0):
        return dataclasses.replace(grpo(max_tokens=max_tokens))
"""


def test_the_example_is_reinforce_against_the_group_mean():
    method = make_objective("grpo", max_tokens=8, overrides={"scale": 2.0, "clip_low": None}, path=f"{EXAMPLE}:make")
    assert (method.name, method.max_tokens) == ("reinforce", 8)
    rows = _rows().replace(reward_R=jnp.array([1.0, 0.0, 0.0, 0.0]))
    assert method.advantage(rows).tolist() == [1.5, -0.5, -0.5, -0.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("return dataclasses", "return 3 # "), r"returned a int; return an Objective"),
        (
            ("max_tokens=max_tokens)", "max_tokens=max_tokens), aggregate='mean'"),
            r"unknown aggregate 'mean'; use one of",
        ),
        (
            (
                "max_tokens=max_tokens)",
                "max_tokens=max_tokens), advantage=lambda rows:\n                rows.rewards_R",
            ),
            r"AttributeError: 'Rows' object has no attribute 'rewards_R'.* \(mine\.py line 6\); mend the code",
        ),
        (
            ("max_tokens=max_tokens)", "max_tokens=max_tokens), advantage=lambda rows: rows.reward_R[:1]"),
            r"its advantage has the shape \(1,\); return \[R\] or \[R, T\]",
        ),
        (
            ("max_tokens=max_tokens)", "max_tokens=max_tokens), policy_loss=lambda batch, a_RT: a_RT"),
            "AttributeError: .* no attribute .?loss_RT",
        ),
    ],
)
def test_what_is_no_method_is_refused(own_code, change, message):
    with pytest.raises(InputError, match=message):
        make_objective("grpo", max_tokens=4, path=own_code(GRPO.replace(*change)))


def test_a_method_of_ones_own_may_ask_for_columns(own_code):
    asks = GRPO.replace("max_tokens=max_tokens)", "max_tokens=max_tokens), needs=('{}',), advantage={}")
    logp = "lambda rows: rows.reward_R - rows.extras['prompt_logp']"
    assert make_objective("grpo", max_tokens=4, path=own_code(asks.format("prompt_logp", logp))).needs == (
        "prompt_logp",
    )
    with pytest.raises(
        InputError, match=r"needs 'surprise', which there is not; use ref_logp, prompt_logp, novelty, plan"
    ):
        make_objective("grpo", max_tokens=4, path=own_code(asks.format("surprise", logp)))


def test_a_method_of_ones_own_may_have_likely_tokens_noted(own_code):
    asks = GRPO.replace(
        "max_tokens=max_tokens)",
        "max_tokens=max_tokens), record=2, advantage_transform=lambda batch:\n"
        "                (batch.top_logp_RTK - batch.rows.extras['top_logp']).sum(-1)",
    )
    assert make_objective("grpo", max_tokens=4, path=own_code(asks)).record == 2


def test_settings_that_it_does_not_have(own_code):
    with pytest.raises(InputError, match=r"objective\.path = .* has no parameter clip_low; it has weight"):
        make_objective("grpo", max_tokens=4, overrides={"clip_low": 0.1}, path=own_code(GRPO))
