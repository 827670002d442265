"""Exports are read back by this package bit for bit, and by transformers with the same logits."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import Decoder, bind, logits, params_of
from iiblpo_jax.model.files import loading, saving


def random_params(config: ModelConfig, seed: int = 0) -> dict:
    """Random everywhere, so that a bias or norm that ends up in the wrong place is seen."""
    rng = np.random.default_rng(seed)
    shapes = params_of(nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0))))

    def draw(path, leaf):
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        name = path[-1].key
        return 1 + 0.2 * noise if "norm" in name else noise * (0.5 if "bias" in name else leaf.shape[-1] ** -0.5)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def assert_same(a: dict, b: dict):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_round_trip_is_bit_exact_and_transformers_gives_the_same_logits(family_config, digits_tokenizer, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    params = random_params(family_config)
    saving.save_model(tmp_path / "out", family_config, params, digits_tokenizer)

    model, tokenizer = loading.load_model(tmp_path / "out")
    assert model.config == family_config
    assert_same(params, params_of(model))
    assert tokenizer.encode("1+2=") == digits_tokenizer.encode("1+2=") != []

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, attn_implementation="eager")
    tokens_BT = np.random.default_rng(1).integers(0, family_config.vocab_size, (2, 40))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens_BT)).logits.numpy()
    assert np.ptp(expected) > 1.0
    np.testing.assert_allclose(np.asarray(logits(model, tokens_BT)), expected, atol=1e-4)


def test_transformers_own_files_load(family_config, digits_tokenizer, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    from iiblpo_jax.model.files.families import config_to_hf

    torch.manual_seed(0)
    hf_config = AutoConfig.for_model(**config_to_hf(family_config))
    theirs = AutoModelForCausalLM.from_config(hf_config, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    theirs.save_pretrained(tmp_path, max_shard_size="8KB")
    digits_tokenizer.save(tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists()

    model, _ = loading.load_model(tmp_path)
    assert model.config == family_config
    tokens_BT = np.random.default_rng(2).integers(0, family_config.vocab_size, (2, 40))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens_BT)).logits.numpy()
    np.testing.assert_allclose(np.asarray(logits(model, tokens_BT)), expected, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_dtypes_are_rounded_once(tiny_config, tmp_path, digits_tokenizer, dtype):
    params = random_params(tiny_config)
    saving.save_model(tmp_path / "out", tiny_config, params, digits_tokenizer, dtype=dtype)
    numpy_dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float16
    back = loading.load_params(tmp_path / "out")[1]
    assert_same(jax.tree.map(lambda x: x.astype(numpy_dtype).astype(np.float32), params), back)
    assert json.loads((tmp_path / "out/config.json").read_text())["torch_dtype"] == dtype


def test_jax_arrays_and_numpy_arrays_write_the_same_file(tiny_config, tmp_path, digits_tokenizer):
    params = random_params(tiny_config)
    saving.save_model(tmp_path / "a", tiny_config, params, digits_tokenizer)
    saving.save_model(tmp_path / "b", tiny_config, jax.tree.map(jax.numpy.asarray, params), digits_tokenizer)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_only_the_first_process_writes(tiny_config, tmp_path, digits_tokenizer, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    saving.save_model(tmp_path / "a", tiny_config, random_params(tiny_config), digits_tokenizer)
    assert not any(tmp_path.iterdir())


def test_large_models_are_sharded_with_an_index(tiny_config, tmp_path, digits_tokenizer):
    params = random_params(tiny_config)
    saving.save_model(tmp_path / "out", tiny_config, params, digits_tokenizer, shard_bytes=6000)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2 and {f.name for f in files} == set(index["weight_map"].values())
    held = {file.name: load_file(file) for file in files}
    assert all(sum(t.nbytes for t in tensors.values()) <= 6000 for tensors in held.values())
    assert {name: file for file, tensors in held.items() for name in tensors} == index["weight_map"]
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in jax.tree.leaves(params))
    assert_same(params, loading.load_params(tmp_path / "out")[1])


def test_an_export_replaces_an_export_and_nothing_else(tiny_config, tmp_path, digits_tokenizer):
    first, second = random_params(tiny_config, 0), random_params(tiny_config, 1)
    saving.save_model(tmp_path / "out", tiny_config, first, digits_tokenizer, shard_bytes=6000)
    saving.save_model(tmp_path / "out", tiny_config, second, digits_tokenizer)
    assert_same(second, loading.load_params(tmp_path / "out")[1])
    assert [p.name for p in tmp_path.iterdir()] == ["out"]

    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="not an earlier export"):
        saving.save_model(precious, tiny_config, first, digits_tokenizer)
    assert [p.name for p in precious.iterdir()] == ["thesis.tex"]


def test_a_failed_export_leaves_the_earlier_one_whole(tiny_config, tmp_path, digits_tokenizer):
    params = random_params(tiny_config)
    saving.save_model(tmp_path / "out", tiny_config, params, digits_tokenizer)
    broken = {**params, "layers": {k: v for k, v in params["layers"].items() if k != "down"}}
    with pytest.raises(KeyError):
        saving.save_model(tmp_path / "out", tiny_config, broken, digits_tokenizer)
    assert_same(params, loading.load_params(tmp_path / "out")[1])
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_refusals(tiny_config, tmp_path, digits_tokenizer):
    params = random_params(tiny_config)
    with pytest.raises(InputError, match="cannot export as int8"):
        saving.save_model(tmp_path / "out", tiny_config, params, digits_tokenizer, dtype="int8")
    with pytest.raises(InputError, match="tokenizer has ids up to 19, the model a vocabulary of 50"):
        wider = dataclasses.replace(tiny_config, vocab_size=50)
        saving.save_model(tmp_path / "out", wider, params, digits_tokenizer)
    assert not list(tmp_path.iterdir())


def test_an_export_keeps_the_sampling_defaults_of_its_model(tiny_config, tmp_path, digits_tokenizer):
    """All but the token ids, which are the tokenizer's."""
    saving.save_model(tmp_path / "a", tiny_config, random_params(tiny_config), digits_tokenizer)
    path = tmp_path / "a/generation_config.json"
    defaults = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    path.write_text(json.dumps(defaults | {"eos_token_id": [1, 7], "pad_token_id": 3}))
    saving.save_model(
        *(tmp_path / "b", tiny_config, random_params(tiny_config), digits_tokenizer),
        generation=loading.load_generation_config(tmp_path / "a"),
    )
    written = json.loads((tmp_path / "b/generation_config.json").read_text())
    assert written == defaults | {"eos_token_id": 1, "pad_token_id": 0}
    path.unlink()
    assert loading.load_generation_config(tmp_path / "a") == {}


def test_bound_model_serves_what_was_saved(tiny_config, tmp_path, digits_tokenizer):
    """generation_config and config.json name every end token, so that other tools stop where we stop."""
    saving.save_model(tmp_path / "out", tiny_config, random_params(tiny_config), digits_tokenizer)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "out" / name).read_text())["eos_token_id"] == 1
    tokens = np.array([[3, 4, 5]])
    direct = logits(bind(tiny_config, random_params(tiny_config)), tokens)
    loaded = logits(loading.load_model(tmp_path / "out")[0], tokens)
    np.testing.assert_array_equal(np.asarray(direct), np.asarray(loaded))
