"""Two rollouts merged into one, against lists of what belongs to each prompt."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iiblpo_jax.rollout.engine import RolloutStats
from iiblpo_jax.rollout.forest import Forest
from iiblpo_jax.step.sampled import Sampled, merge

P, M, J, S, T, Z = 4, 2, 3, 3, 5, 2
G, R = M * J, P * M * J

MESH = """
    import sys; sys.path.insert(0, sys.argv[1])
    import jax, numpy as np
    from iiblpo_jax.defaults import default_config
    from iiblpo_jax.devices import mesh as meshes
    from test_sampled import P, TAKE_P, expected, sampled
    from iiblpo_jax.step.sampled import merge

    for axes in ((2, 2, 1, 1), (1, 2, 2, 1), (2, 1, 1, 2)):
        section = default_config().mesh
        section.update(dict(zip(meshes.AXES, axes)))
        mesh = meshes.make_mesh(section, prompts=P, devices=jax.devices())
        place = jax.NamedSharding(mesh, jax.P(meshes.rollout_axes(mesh, P)))
        everywhere = jax.NamedSharding(mesh, jax.P())
        both = [x._replace(forest=jax.device_put(x.forest, place), columns=jax.device_put(x.columns, place),
                           stats=jax.device_put(x.stats, everywhere)) for x in (sampled(0), sampled(1))]
        found = merge(*both, meshes.to_devices(TAKE_P, mesh), mesh=mesh)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(found[::2]), expected())
        assert found.forest.tokens_RT.sharding.is_equivalent_to(place, 2), (axes, found.forest.tokens_RT.sharding)
"""

TAKE_P = np.array([1, 3, 4, 0], np.int32)  # the first of the second rollout among those of the first


def sampled(seed, z=Z):
    """Random numbers for everything; parents as in trees of a root with two branches."""
    random = np.random.default_rng(seed)
    root_R = np.arange(R) // J * J
    forest = Forest(
        prompt_PS=random.integers(1, 99, (P, S)),
        prompt_len_P=random.integers(1, S, P),
        tokens_RT=random.integers(1, 99, (R, T)),
        raw_logp_RT=random.normal(size=(R, T)),
        entropy_RT=random.normal(size=(R, T)),
        length_R=random.integers(1, T, R),
        finish_R=random.integers(0, 2, R),
        parent_R=np.where(np.arange(R) % J == 0, -1, root_R),
        branch_at_R=random.integers(0, T, R),
        z_RZ=random.normal(size=(R, z)),
        fallback_R=random.random(R) < 0.5,
        left_R=random.random(R),
    )
    columns = {"ib_answer": random.normal(size=R), "ref_logp": random.normal(size=(R, T))}
    stats = RolloutStats(tokens=np.int32(30 * (1 + seed)), slot_utilisation=np.float32(0.5 / (1 + seed)))
    return jax.tree.map(jnp.asarray, Sampled(forest, stats, columns))


def expected(z=Z):
    """(forest, columns): a list of what each of the 2P prompts has, the wanted ones out of it."""

    def lists(x, y):
        per_prompt = [part for half in (x, y) for part in np.split(np.asarray(half), P)]
        return np.concatenate([per_prompt[p] for p in TAKE_P])

    a, b = jax.device_get((sampled(0, z), sampled(1, z)))
    forest, columns = jax.tree.map(lists, (a.forest, a.columns), (b.forest, b.columns))
    return forest.replace(parent_R=a.forest.parent_R), columns  # trees of the same shape stand in the same places


@pytest.mark.parametrize("z", [Z, 0])
def test_prompts_move_with_all_that_is_theirs(z):
    found = jax.device_get(merge(sampled(0, z), sampled(1, z), jnp.asarray(TAKE_P)))
    forest, columns = expected(z)
    jax.tree.map(np.testing.assert_array_equal, (found.forest, found.columns), (forest, columns))
    for r, parent in enumerate(found.forest.parent_R):  # a branch still grows on a root of its own prompt
        assert parent == -1 or (parent // G == r // G and found.forest.parent_R[parent] == -1)


def test_the_tokens_of_both_count_and_slots_were_busy_for_all_of_them():
    """30 tokens in 60 places and 60 in 240: 90 in 300."""
    stats = merge(sampled(0), sampled(1), jnp.arange(P)).stats
    assert int(stats.tokens) == 90 and float(stats.slot_utilisation) == pytest.approx(0.3)


def test_merging_on_a_mesh(run_script):
    """And the outcome lies as a rollout leaves it, so that what takes it is compiled once."""
    run_script(MESH, str(Path(__file__).parent), devices=4)
