"""The table of credits: a config names what there is, and a step's advantages are those of the module."""

import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.config.defaults import KNOBS
from iiblpo_jax.objectives import advantages, make_objective
from iiblpo_jax.objectives.credit import CREDITS, with_credit
from iiblpo_jax.objectives.credit.fr3e import fr3e_advantage
from iiblpo_jax.objectives.credit.ib_tpo import ib_tpo_advantage
from iiblpo_jax.objectives.credit.siblings import sibling_advantage
from iiblpo_jax.objectives.credit.tree import tree_advantage
from iiblpo_jax.objectives.credit.treepo import treepo_advantage
from iiblpo_jax.objectives.credit.treerl import treerl_advantage

PARENT_J = (-1, 0, 0)
EXPECTED = {
    "tree": lambda o, plain: tree_advantage(o, parent_J=PARENT_J, local=0.3),
    "siblings": lambda o, plain: sibling_advantage(o, tree_size=3, local=0.3),
    "treerl": lambda o, plain: treerl_advantage(o, parent_J=PARENT_J),
    "treepo": lambda o, plain: treepo_advantage(o, parent_J=PARENT_J),
    "fr3e": lambda o, plain: fr3e_advantage(o, plain, parent_J=PARENT_J),
    "ib_tpo": lambda o, plain: ib_tpo_advantage(o, parent_J=PARENT_J, coef=0.2),
}


def test_config_names_the_credits_there_are():
    assert KNOBS["branch.credit"].choices == ("trajectory", *CREDITS)


@pytest.mark.parametrize("name", CREDITS)
def test_a_method_with_a_credit_has_its_advantages_on_kept_rows(grow, name):
    rows, base = grow(1, PARENT_J).rows, make_objective("dr_grpo", max_tokens=6)
    rows = rows.replace(ref_logp_RT=-jnp.ones(rows.mask_RT.shape))
    method = with_credit(base, name, parent_J=PARENT_J, local=0.3, ib_coef=0.2)
    found, expected = np.asarray(advantages(method, rows)), np.asarray(EXPECTED[name](rows, base.advantage(rows)))
    keep = np.asarray(rows.keep_R) > 0
    np.testing.assert_allclose(found[keep], expected[keep], atol=1e-6)
    assert not found[~keep].any() and not keep.all() and expected[keep].any()
    assert (method.policy_loss, method.aggregate) == (base.policy_loss, base.aggregate)
