"""How trees grow, by hand."""

import jax.numpy as jnp

from iiblpo_jax.rollout.branching import Branching


def test_numbers_of_a_tree_of_two_on_two():
    """Trajectories 7 to 13 are a tree of 0 - (1 - (2, 3), 4 - (5, 6))."""
    spec = Branching(k=2, parent="previous", depth=2)
    assert (spec.tree_size, spec.branches, spec.subtree, spec.levels) == (7, 6, 3, 2)
    assert spec.grows_on(jnp.arange(7, 14)).tolist() == [-1, 7, 8, 8, 7, 11, 11]
    assert spec.nth(jnp.arange(7, 14)).tolist() == [0, 0, 0, 1, 1, 0, 1]
    flat = Branching(k=2, depth=5)  # with parent = root, depth means nothing
    assert (flat.tree_size, flat.subtree, flat.levels) == (3, 1, 1)
    assert flat.grows_on(jnp.arange(3)).tolist() == [-1, 0, 0]
    none = Branching(parent="previous")
    assert (none.tree_size, none.branches, none.levels) == (1, 0, 0)


def test_how_many_points_a_trajectory_has():
    assert Branching(k=4).different_points == 1
    assert Branching(k=4, points="distinct").different_points == 4
    assert Branching(k=4, points="distinct", per_point=2).different_points == 2
