"""A branch point as a prompt of its own, by hand."""

import jax.numpy as jnp
import numpy as np

from iiblpo_jax.objectives import advantages, make_objective
from iiblpo_jax.objectives.credit import with_credit
from iiblpo_jax.objectives.credit.siblings import sibling_advantage

T = 6


def test_siblings_take_a_branch_point_for_a_prompt_by_hand(outcomes):
    """Two trees of a root and two branches; the second root has none, so its branches are not kept."""
    o = outcomes([1, 1, 0, 0, 0, 0], [0, 2, 3, 0, 0, 0], [6, 5, 6, 4, 0, 0], group=6)
    o = o.replace(keep_R=jnp.array([1.0, 1, 1, 1, 0, 0]))
    # Roots 1 and 0: +-1 / sqrt 2. The tree 1, 1, 0: mean 2/3, standard deviation 1 / sqrt 3.
    root, right, wrong = 2**-0.5, (1 / 3) * 3**0.5, (-2 / 3) * 3**0.5
    expected = np.zeros((6, T))
    expected[0], expected[3] = root, -root
    expected[1, 2:], expected[2, 3:] = right, wrong
    found = sibling_advantage(o, tree_size=3, local=1.0)
    np.testing.assert_allclose(np.where(o.mask_RT, found, 0), np.where(o.mask_RT, expected, 0), atol=1e-5)
    half = sibling_advantage(o, tree_size=3, local=0.5)
    np.testing.assert_allclose(half[1:3], 0.5 * found[1:3], atol=1e-6)
    np.testing.assert_allclose(half[::3], found[::3], atol=1e-6)


def test_siblings_without_branches_are_the_method_itself(outcomes):
    o = outcomes([1, 0, 0, 1, 1, 1], [0] * 6, [6] * 6, group=3)
    method = make_objective("grpo", max_tokens=T)
    siblings = with_credit(method, "siblings", parent_J=(-1,))
    np.testing.assert_allclose(advantages(siblings, o), advantages(method, o)[:, None].repeat(T, 1), atol=1e-6)
