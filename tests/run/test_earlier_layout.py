"""Checkpoints of earlier versions, written here by hand, give the state and the policy of today."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.defaults import default_config
from iiblpo_jax.devices import mesh as meshes
from iiblpo_jax.model.decoder import Decoder, params_of
from iiblpo_jax.run.checkpoints import Checkpoints
from iiblpo_jax.update.optimizer import decay_mask, make_optimizer
from iiblpo_jax.update.state import init_state


def apart(layers):
    """Weights of `layers` as they were stored: one leaf a projection, `o` with one axis of heads."""
    r, out = layers["o"].shape[3], {}
    for key in layers:
        x = layers[key]
        if key in ("qkv", "qkv_bias"):
            q = np.asarray(x[:, :, :r])
            parts = [q.reshape(len(q), -1, *q.shape[3:]), x[:, :, r], x[:, :, r + 1]]
            out |= {key.replace("qkv", name): part for name, part in zip("qkv", parts, strict=True)}
        elif key == "qk_norm":
            out |= {"q_norm": x[:, 0], "k_norm": x[:, 1]}
        elif key == "gate_up":
            out |= {"gate": x[:, 0], "up": x[:, 1]}
        else:
            out[key] = x.reshape(*x.shape[:2], -1, x.shape[-1]) if key == "o" else x
    return {name: jnp.asarray(x) for name, x in out.items()}


def state_of(layers, rest, seed):
    """A train state whose every array differs, optimizer moments included."""
    params = {"policy": {**rest, "layers": layers}}
    state = init_state(params, make_optimizer(default_config().optim))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), state)


def split(tree):
    """`apart` wherever a dict has the fused weights."""

    def is_layers(node):
        return isinstance(node, dict) and hasattr(node.get("qkv"), "shape")

    return jax.tree.map(lambda node: apart(node) if is_layers(node) else node, tree, is_leaf=is_layers)


@pytest.fixture
def saved(tmp_path, tiny_config):
    """(folder with an earlier checkpoint, the state of today that it stands for)."""
    params = params_of(Decoder(dataclasses.replace(tiny_config, qkv_bias=True), rngs=nnx.Rngs(0)))
    state = state_of(params.pop("layers"), params, 0)
    checkpoints = Checkpoints(tmp_path, keep=1, every=1)
    checkpoints.save(1, split(state), extra={"it": "was"})
    checkpoints.close()
    return tmp_path, state


@flax.struct.dataclass
class EarlierState:
    """A train state as it was stored while the optimizer's state held the schedule."""

    params: dict
    opt_state: tuple
    step: jax.Array


def test_a_schedule_of_optimizer_steps_becomes_one_of_rollouts(tmp_path, tiny_config):
    """Four steps a rollout: 28 of them in seven rollouts. Weights, moments and Adam's own counts are as they were."""
    params = {"policy": params_of(Decoder(tiny_config, rngs=nnx.Rngs(0))), "psa": {"gain": jnp.ones((2, 3))}}
    clip, parts = optax.clip_by_global_norm(1.0), {"policy": lambda rate: optax.adamw(rate, mask=decay_mask)}
    parts = {name: parts.get(name, optax.adam)(optax.constant_schedule(1e-3)) for name in params}
    labels = {name: jax.tree.map(lambda _, name=name: name, tree) for name, tree in params.items()}
    earlier = EarlierState(params, optax.chain(clip, optax.partition(parts, labels)).init(params), jnp.int32(7))
    earlier = jax.tree.map(lambda x: x + 28 if x.dtype == jnp.int32 and x is not earlier.step else x + 1.5, earlier)
    earlier = earlier.replace(step=jnp.int32(7))
    checkpoints = Checkpoints(tmp_path, keep=1, every=1)
    checkpoints.save(7, earlier)
    checkpoints.close()

    state = init_state(params, make_optimizer(default_config().optim))
    step, found, _, _ = Checkpoints(tmp_path, keep=1, every=1).restore_latest(jax.tree.map(jnp.zeros_like, state))
    assert (step, int(found.step), int(found.moved)) == (7, 7, 7)
    assert found.step.unsafe_buffer_pointer() != found.moved.unsafe_buffer_pointer()  # both are donated
    assert_same(found.params, earlier.params)
    counts = [leaf for leaf in jax.tree.leaves(found.opt_state) if leaf.dtype == jnp.int32]
    assert [int(count) for count in counts] == [28, 28]
    assert_same(_moments(found.opt_state), _moments(earlier.opt_state))


def _moments(opt_state):
    return [leaf for leaf in jax.tree.leaves(opt_state) if leaf.dtype != jnp.int32]


def assert_same(found, wanted):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_whole_state_comes_back_fused(saved):
    folder, state = saved
    step, found, _, extra = Checkpoints(folder, keep=1, every=1).restore_latest(jax.tree.map(np.zeros_like, state))
    assert (step, extra) == (1, {"it": "was"}) and jax.tree.structure(found) == jax.tree.structure(state)
    assert_same(found, state)


def test_the_policy_comes_back_fused_where_it_is_to_lie(saved, tiny_config):
    folder, state = saved
    mesh = meshes.make_mesh(default_config().mesh, devices=jax.devices()[:1])
    model = Decoder(dataclasses.replace(tiny_config, qkv_bias=True), rngs=nnx.Rngs(1))
    placed = meshes.shard_params(params_of(model), meshes.param_shardings(model, mesh, meshes.TRAIN))
    step, found = Checkpoints(folder, keep=1, every=1).restore_policy(placed)
    assert step == 1 and found["layers"]["qkv"].sharding == placed["layers"]["qkv"].sharding
    assert_same(found, state.params["policy"])


def test_another_model_is_refused_all_the_same(saved, tiny_config):
    folder, _ = saved
    wider = params_of(Decoder(dataclasses.replace(tiny_config, qkv_bias=True, d_ff=48), rngs=nnx.Rngs(0)))
    with pytest.raises(InputError, match=r"layers\.down of shape .*; use the config the run began with"):
        Checkpoints(folder, keep=1, every=1).restore_policy(wider)
