"""Paths, masks and rows of a hand-made forest."""

import jax.numpy as jnp
import numpy as np

from iiblpo_jax.common.padded import join
from iiblpo_jax.model.steering.psa import latent_inputs
from iiblpo_jax.rollout.forest import Forest


def hand_made():
    """One prompt, one root of 4 tokens, a chain of two branches at 2 and 3."""
    zeros = jnp.zeros((3, 5))
    return Forest(
        prompt_PS=jnp.array([[7, 8, 0]]),
        prompt_len_P=jnp.array([2]),
        tokens_RT=jnp.array([[1, 2, 3, 4, 0], [1, 2, 5, 6, 9], [1, 2, 5, 9, 0]]),
        raw_logp_RT=zeros,
        entropy_RT=zeros,
        length_R=jnp.array([4, 5, 4]),
        finish_R=jnp.array([1, 1, 1]),
        parent_R=jnp.array([-1, 0, 1]),
        branch_at_R=jnp.array([0, 2, 3]),
        z_RZ=jnp.array([[0.0], [10.0], [20.0]]),
        fallback_R=jnp.array([False] * 3),
        left_R=jnp.ones(3),
    )


def test_masks_and_rows():
    forest = hand_made()
    assert forest.group_size == 3 and forest.group_R.tolist() == [0, 0, 0]
    assert forest.mask_RT.sum(1).tolist() == [4, 5, 4]
    assert forest.own_RT.sum(1).tolist() == [4, 3, 1]
    assert forest.sequences_RC.tolist() == [
        [7, 8, 1, 2, 3, 4, 0, 0],
        [7, 8, 1, 2, 5, 6, 9, 0],
        [7, 8, 1, 2, 5, 9, 0, 0],
    ]


def test_latent_path_lists_levels_from_the_root_side():
    z, at = hand_made().latent_path(2)
    assert at.tolist() == [[0, 0], [0, 2], [2, 3]]
    assert z[1, 1, 0] == 10 and z[2, :, 0].tolist() == [10.0, 20.0]


def test_fallback_branches_have_no_latent():
    forest = hand_made().replace(fallback_R=jnp.array([False, True, False]))
    assert forest.latent_path(2)[1].tolist() == [[0, 0], [0, 0], [0, 3]]


def test_a_resample_on_a_branch_switches_the_z_before_it_off():
    """The forward of row 2 hears the first branch's z up to the token before t* - 1, and nothing behind it."""
    forest = hand_made().replace(fallback_R=jnp.array([False, False, True]))
    z_RJZ, at_RJ = forest.latent_path(2)
    assert at_RJ.tolist() == [[0, 0], [0, 2], [2, -3]]
    latent = latent_inputs(z_RJZ, at_RJ, jnp.array([2, 2, 2]), 7, half_life=8.0, strength=1.0)
    assert latent.segment_BT.tolist() == [[-1] * 7, [-1] * 3 + [1] * 4, [-1] * 3 + [0] + [-1] * 3]


def test_join_closes_the_gap():
    left, right = jnp.array([[1, 2, 0], [3, 0, 0]]), jnp.array([[4, 5], [6, 0]])
    np.testing.assert_array_equal(
        join(left, jnp.array([2, 1]), right, jnp.array([2, 1])), [[1, 2, 4, 5, 0], [3, 6, 0, 0, 0]]
    )
