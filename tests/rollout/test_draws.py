"""Random numbers by hand, and that those of a prompt do not depend on its company."""

import jax
import jax.numpy as jnp
import numpy as np

from iiblpo_jax.rollout.draws import Origin, draws_for, in_order

P, G, T = 4, 3, 5


def test_numbers_are_functions_of_key_and_number():
    key = jax.random.key(7)
    found = draws_for(in_order(key, P, G), G, T)
    tokens, points, latents = jax.random.split(key, 3)
    for r in range(P * G):
        np.testing.assert_array_equal(found.uniform_RT[r], jax.random.uniform(jax.random.fold_in(tokens, r), (T,)))
    row_B = jnp.array([5, 0, 11])
    for parent, keys in ((points, found.point_keys(row_B)), (latents, found.latent_keys(row_B))):
        assert (keys == jnp.stack([jax.random.fold_in(parent, r) for r in (5, 0, 11)])).all()


def test_a_prompt_has_its_numbers_in_any_company():
    """Prompts 3 and 1 of that rollout, and one of another in between."""
    key, other = jax.random.key(7), jax.random.key(8)
    all_of_them, others = draws_for(in_order(key, P, G), G, T), draws_for(in_order(other, P, G), G, T)
    found = draws_for(Origin(key_P=jnp.stack([key, other, key]), row_P=jnp.array([3 * G, 0, 1 * G])), G, T)
    rows = [*range(9, 12), *range(3), *range(3, 6)]
    expected = [*all_of_them.uniform_RT[9:], *others.uniform_RT[:3], *all_of_them.uniform_RT[3:6]]
    np.testing.assert_array_equal(found.uniform_RT, np.array(expected))
    assert found.number_R.tolist() == rows
    assert (found.point_keys(jnp.array([1, 7])) == all_of_them.point_keys(jnp.array([10, 4]))).all()
