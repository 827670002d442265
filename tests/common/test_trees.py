"""Shapes of trees by hand, and what holds for all of them."""

import pytest

from iiblpo_jax.common.trees import levels, tree_shape, tree_size


def test_two_on_two_by_hand():
    shape = tree_shape(2, 2)
    assert shape.parent_J == (-1, 0, 1, 1, 0, 4, 4)
    assert shape.level_J == (0, 1, 2, 2, 1, 2, 2)
    assert shape.nth_J == (0, 0, 0, 1, 1, 0, 1)


def test_flat_trees_and_chains():
    assert tree_shape(3, 1).parent_J == (-1, 0, 0, 0) and tree_shape(3, 1).nth_J == (0, 0, 1, 2)
    assert tree_shape(1, 3).parent_J == (-1, 0, 1, 2) and tree_shape(1, 3).level_J == (0, 1, 2, 3)
    assert tree_shape(0, 0).parent_J == (-1,)


@pytest.mark.parametrize(("k", "depth"), [(1, 1), (1, 4), (2, 3), (3, 2), (4, 1)])
def test_size_order_and_numbers_of_branches(k, depth):
    shape = tree_shape(k, depth)
    assert len(shape.parent_J) == tree_size(k, depth) == sum(k**level for level in range(depth + 1))
    for j, parent in enumerate(shape.parent_J):
        assert parent < j  # a parent is finished before what grows on it
        assert shape.parent_J.count(j) == (k if shape.level_J[j] < depth else 0)


def test_levels_of_the_two_kinds_of_parents():
    assert levels(3, 2, "root") == 1 and levels(3, 2, "previous") == 2
    assert levels(0, 2, "root") == levels(0, 2, "previous") == 0
