"""Placement: which device holds which part of a weight, on one device and on eight virtual ones."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as Spec

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.defaults import default_config
from iiblpo_jax.devices import mesh as mesh_lib
from iiblpo_jax.model.decoder import Decoder
from iiblpo_jax.model.steering.cvae import CVAE
from iiblpo_jax.model.steering.psa import PSA
from iiblpo_jax.step import specs


def test_one_device_mesh_holds_everything(tiny_config, tiny_params):
    mesh = mesh_lib.make_mesh(default_config().mesh, devices=jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "sequence": 1, "tensor": 1}
    shardings = mesh_lib.param_shardings(Decoder(tiny_config, rngs=nnx.Rngs(0)), mesh, mesh_lib.TRAIN)
    placed = mesh_lib.shard_params(tiny_params, shardings)
    assert jax.tree.structure(placed) == jax.tree.structure(tiny_params)
    for before, after in zip(jax.tree.leaves(tiny_params), jax.tree.leaves(placed), strict=True):
        np.testing.assert_array_equal(before, after)
        assert after.sharding.is_fully_replicated


def test_every_logical_axis_of_the_models_is_in_both_tables(tiny_config):
    modules = [Decoder(tiny_config, rngs=nnx.Rngs(0)), PSA(tiny_config, 4, 2, rngs=nnx.Rngs(0))]
    modules.append(CVAE(16, 4, 8, rngs=nnx.Rngs(0)))
    mesh = mesh_lib.make_mesh(default_config().mesh, devices=jax.devices()[:1])
    for module in modules:
        n_params = len(jax.tree.leaves(nnx.split(module, nnx.Param, ...)[1]))
        for table in (mesh_lib.TRAIN, mesh_lib.ROLLOUT):
            assert len(jax.tree.leaves(mesh_lib.param_shardings(module, mesh, table))) == n_params


def test_a_mesh_that_does_not_fit_names_numbers_that_do():
    config = default_config()
    config.mesh.fsdp = 3
    with pytest.raises(
        InputError, match=r"asks for 3 devices and 1 exist; use mesh.data=1 mesh.fsdp=1 mesh.sequence=1 mesh.tensor=1"
    ):
        mesh_lib.make_mesh(config.mesh, devices=jax.devices()[:1])


EIGHT = """
    import json, jax
    from flax import nnx
    from iiblpo_jax.devices import mesh as mesh_lib
    from iiblpo_jax.defaults import default_config
    from iiblpo_jax.common.errors import InputError
    from iiblpo_jax.model.config import ModelConfig
    from iiblpo_jax.model.decoder import Decoder, params_of

    c = default_config().mesh
    c.data, c.fsdp, c.tensor = -1, 2, 2
    mesh = mesh_lib.make_mesh(c, prompts=8)
    config = ModelConfig(family="qwen3", vocab_size=24, d_model=16, d_ff=32, n_layers=2, n_heads=4, n_kv_heads=1,
                         head_dim=8, qk_norm=True)
    model = Decoder(config, rngs=nnx.Rngs(0))
    out = {"mesh": dict(mesh.shape)}
    for name in ("TRAIN", "ROLLOUT"):
        shardings = mesh_lib.param_shardings(model, mesh, getattr(mesh_lib, name))
        placed = mesh_lib.shard_params(params_of(model), shardings)
        out[name] = {jax.tree_util.keystr(path, simple=True, separator="."): x.addressable_shards[0].data.shape
                     for path, x in jax.tree.leaves_with_path(placed)}
    by_rows = mesh_lib.sharding(mesh, ("batch", None), mesh_lib.TRAIN, shape=(8, 3))
    out["rows"] = by_rows.shard_shape((8, 3))
    try:
        mesh_lib.make_mesh(c, prompts=6)
    except InputError as error:
        out["error"] = str(error)
    print(json.dumps(out))
"""


def test_placement_on_eight_devices(run_script):
    out = json.loads(run_script(EIGHT, devices=8))
    assert out["mesh"] == {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 2}
    # one device's part of each weight: vocab and mlp halved by tensor, embed halved by fsdp
    expected = {
        "embed": [12, 8],
        "final_norm": [16],
        "layers.attn_norm": [2, 16],
        "layers.qkv": [2, 1, 6, 8, 8],  # one kv head cannot be halved: it and its queries stay whole over tensor
        "layers.o": [2, 8, 1, 4, 8],
        "layers.qk_norm": [2, 2, 8],
        "layers.mlp_norm": [2, 16],
        "layers.gate_up": [2, 2, 16, 8],
        "layers.down": [2, 8, 16],
    }
    assert out["TRAIN"] == expected
    assert out["ROLLOUT"]["layers.qkv"] == [2, 1, 6, 8, 16] and out["ROLLOUT"]["embed"] == [12, 16]
    assert out["rows"] == [2, 3]
    assert "train.prompts_per_step = 6 cannot be split over mesh.data * mesh.fsdp = 4" in out["error"]


def test_kv_heads_lie_apart_with_all_that_belongs_to_them(tiny_config):
    mesh = jax.sharding.AbstractMesh((1, 2, 1, 2), mesh_lib.AXES)
    decoder = nnx.eval_shape(lambda: Decoder(dataclasses.replace(tiny_config, qkv_bias=True), rngs=nnx.Rngs(0)))
    layers = mesh_lib.param_shardings(decoder, mesh, mesh_lib.TRAIN)["layers"]
    assert layers["qkv"].spec == Spec(None, "tensor", None, None, "fsdp")
    assert layers["qkv_bias"].spec == Spec(None, "tensor", None, None)
    assert layers["o"].spec == Spec(None, "fsdp", "tensor", None, None)
    assert layers["gate_up"].spec == Spec(None, None, "tensor", "fsdp")


def test_the_kernel_is_refused_along_sequence(tiny_config):
    config = default_config()
    config.attention.impl = "pallas"
    specs.check_attention(config, tiny_config, jax.sharding.AbstractMesh((4, 1, 1, 1), mesh_lib.AXES))
    with pytest.raises(InputError, match=r"mesh\.sequence = 2 splits them; use attention\.impl=blocks"):
        specs.check_attention(config, tiny_config, jax.sharding.AbstractMesh((2, 1, 2, 1), mesh_lib.AXES))


@pytest.mark.parametrize("devices", [1, 4])
def test_the_platform_is_that_of_the_mesh_not_of_this_machine(tiny_config, devices):
    tpu = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=None, platform="tpu")
    mesh = jax.sharding.AbstractMesh((devices, 1, 1, 1), mesh_lib.AXES, abstract_device=tpu)
    with mesh_lib.using(mesh):
        assert mesh_lib.platform() == "tpu"
    assert mesh_lib.platform() == jax.default_backend()
    config = default_config()
    config.attention.impl = "pallas"
    with pytest.raises(InputError, match=r"this is a TPU; use attention\.impl=blocks"):
        specs.check_attention(config, tiny_config, mesh)


def test_a_dimension_that_does_not_divide_stays_whole(tiny_config):
    mesh = jax.sharding.AbstractMesh((1, 2, 1, 4), mesh_lib.AXES)
    axes, shape = ("layers", "kv_heads", "head", "embed"), (2, 2, 8, 16)
    assert mesh_lib.sharding(mesh, axes, mesh_lib.TRAIN, shape=shape).spec == Spec(None, None, None, "fsdp")
    assert mesh_lib.sharding(mesh, axes, mesh_lib.ROLLOUT, shape=(2, 4, 8, 16)).spec == Spec(None, "tensor", None, None)
