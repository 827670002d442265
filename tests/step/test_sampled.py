"""Two rollouts merged into one, against lists of what belongs to each prompt."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from iiblpo_jax.bottleneck import Reading
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import Decoder, params_of
from iiblpo_jax.rollout.engine import RolloutStats
from iiblpo_jax.rollout.forest import Forest
from iiblpo_jax.step.hinted import Replace, _put
from iiblpo_jax.step.sampled import Sampled, merge

P, M, J, S, T, Z = 4, 2, 3, 3, 5, 2
G, R = M * J, P * M * J

MESH = """
    import sys; sys.path.insert(0, sys.argv[1])
    import jax, numpy as np
    from iiblpo_jax.defaults import default_config
    from iiblpo_jax.devices import mesh as meshes
    import dataclasses
    from test_sampled import P, TAKE_P, expected, policy_and_how, sampled, taken
    from iiblpo_jax.step.hinted import replaced
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
    # The last mesh also for what a hint found: responses of other prompts, read anew.
    policy, how = policy_and_how()
    alone = replaced(policy, sampled(0).forest, taken(), **how, mesh=None)
    kept, said = (jax.device_put(x, place) for x in (both[0].forest, taken()))
    how["reading"] = dataclasses.replace(how["reading"], shards=2)
    found = replaced(jax.device_put(policy, everywhere), kept, said, **how, mesh=mesh)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), jax.device_get((found, alone))[0],
                 jax.device_get(alone))
    new = np.asarray(taken().take_R) >= 0
    np.testing.assert_array_equal(np.asarray(alone.raw_logp_RT)[~new], np.asarray(sampled(0).forest.raw_logp_RT)[~new])
    assert new.any() and (np.asarray(alone.raw_logp_RT)[new] != np.asarray(sampled(0).forest.raw_logp_RT)[new]).any()
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


def taken():
    """Responses of the second rollout in the places of some of the first, one of them behind two tokens of a hint."""
    fresh, take_R = sampled(1).forest, np.full(R, -1, np.int32)
    take_R[[1, 5, G * 3]] = G * 2, 3, G * 2 + 1
    begin_PH, begin_len_P = np.tile(np.array([7, 8], np.int32), (P, 1)), np.array([0, 0, 1, 0], np.int32)
    return Replace(fresh, *map(jnp.asarray, (begin_PH, begin_len_P, take_R)))


def policy_and_how():
    """A tiny policy of the vocabulary of `sampled`, and the static arguments of `replaced` but the mesh."""
    config = ModelConfig(family="llama", vocab_size=99, d_model=16, d_ff=16, n_layers=1, n_heads=2, n_kv_heads=2,
                         head_dim=8)  # fmt: skip
    reading = Reading(temperature=0.8, pack_tokens=32)
    return params_of(Decoder(config, rngs=nnx.Rngs(0))), {"model": config, "reading": reading, "dtype": "float32"}


def test_what_takes_the_place_of_a_response():
    said, kept = taken(), sampled(0).forest
    found = jax.device_get(_put(kept, said))
    for r, i in enumerate(said.take_R.tolist()):
        source = kept if i < 0 else said.fresh
        begin = [7] if i // G == 2 and i >= 0 else []
        wanted = [*begin, *source.tokens_RT[i if i >= 0 else r, : source.length_R[i if i >= 0 else r]].tolist()]
        assert found.tokens_RT[r, : found.length_R[r]].tolist() == wanted
        assert found.finish_R[r] == source.finish_R[i if i >= 0 else r]


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
