"""The queue by hand: trees of one root and three branches (trajectories 4t, 4t+1, 4t+2, 4t+3)."""

import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.rollout.branching import Branching
from iiblpo_jax.rollout.slots import donates, idle_slots, owes, pending, refillable, steal_from, take_trees

TREES = Branching(k=3)


def slots(trajectories, live, last=None):
    n = len(trajectories)
    return idle_slots(n).replace(
        trajectory_B=jnp.array(trajectories), live_B=jnp.array(live, bool), last_B=jnp.array(last or [3] * n)
    )


@pytest.mark.parametrize(
    ("trajectory", "live", "last", "left", "owed", "gives"),
    [
        (-1, 0, 0, 0, False, False),  # has not begun
        (4, 1, 3, 3, False, False),  # a root in the making has no branch point yet
        (4, 0, 3, 3, True, True),  # grows branch 1 itself and may give branch 3 away
        (5, 1, 3, 2, False, True),
        (6, 0, 3, 1, True, False),  # the one branch that is left is its own next
        (7, 1, 3, 0, False, False),
        (5, 1, 1, 0, False, False),  # branches 2 and 3 were stolen
    ],
)
def test_what_a_slot_owes_and_gives(trajectory, live, last, left, owed, gives):
    one = slots([trajectory], [live], [last])
    found = pending(one, TREES)[0], owes(one, TREES)[0], donates(one, TREES)[0]
    assert tuple(x.item() for x in found) == (left, owed, gives)
    assert not donates(one, Branching(k=1, parent="previous", depth=3))[0]


@pytest.mark.parametrize(
    ("trajectory", "live", "last", "left", "gives"),
    [
        (13, 1, 12, 12, False),  # the root in the making
        (13, 0, 12, 12, True),  # grows branch 1 itself and may give 9 away, with 10, 11 and 12
        (14, 1, 12, 11, True),
        (20, 1, 12, 5, True),  # inside the second branch, 5 to 8
        (20, 0, 12, 5, True),  # its own next is 8, still of the second
        (21, 0, 12, 4, False),  # its own next is 9
        (22, 1, 12, 3, False),
        (20, 1, 8, 1, False),  # the third was given away
        (13, 0, 0, 0, False),  # a root that is due none
    ],
)
def test_what_gives_of_a_tree_of_three_on_three(trajectory, live, last, left, gives):
    """Trajectories 13 to 25: 0 - (1 - (2, 3, 4), 5 - (6, 7, 8), 9 - (10, 11, 12))."""
    one, deep = slots([trajectory], [live], [last]), Branching(k=3, parent="previous", depth=2)
    assert (pending(one, deep)[0].item(), donates(one, deep)[0].item()) == (left, gives)


def test_free_slots_take_trees_in_order_and_owing_ones_do_not():
    state = slots([3, 4, -1, 8, 15], [0, 0, 0, 1, 0])
    np.testing.assert_array_equal(take_trees(state, jnp.int32(5), 7, TREES), [5, -1, 6, -1, -1])


def test_free_slots_take_a_donors_last_branch():
    state = slots([3, 5, 9, 7, 15], [0, 1, 1, 0, 0])  # slots 1 and 2 may give, slots 0, 3 and 4 are free
    np.testing.assert_array_equal(steal_from(state, TREES), [1, -1, -1, 2, -1])


def test_refillable_counts_own_branches_and_what_is_on_offer():
    state = slots([3, 5, 4, 7, 15], [0, 1, 0, 0, 0])  # slot 2 owes; 0, 3, 4 are free; 1 and 2 may give one each
    assert int(refillable(state, 0, TREES)) == 1 + 2
    assert int(refillable(state, 9, TREES)) == 1 + 3
