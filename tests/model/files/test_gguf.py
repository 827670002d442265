"""GGUF models written here with llama.cpp's conventions: read back exactly, and as transformers reads them."""

import builtins
import struct

import jax
import numpy as np
import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.model.config import Llama3Rope, ModelConfig
from iiblpo_jax.model.decoder import bind, logits
from iiblpo_jax.model.files import loading
from iiblpo_jax.model.files.gguf_format import GGUFContainer

gguf = pytest.importorskip("gguf", reason="extra [gguf] is not installed")

SIZES = {"vocab_size": 64, "d_model": 32, "d_ff": 64, "n_layers": 2, "max_positions": 64, "rope_theta": 5e4}
CONFIGS = {
    "llama": ModelConfig(
        family="llama", n_heads=3, n_kv_heads=1, head_dim=32, norm_eps=1e-5, **SIZES | {"d_model": 96}
    ),
    "llama-untied": ModelConfig(family="llama", n_heads=4, n_kv_heads=2, head_dim=16, tied_embeddings=False, **SIZES),
    "qwen2": ModelConfig(family="qwen2", n_heads=4, n_kv_heads=2, head_dim=8, qkv_bias=True, **SIZES),
    "qwen3": ModelConfig(family="qwen3", n_heads=3, n_kv_heads=3, head_dim=16, qk_norm=True, **SIZES),
}
NAMES = {
    "attn_norm": "attn_norm.weight",
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "o": "attn_output.weight",
    "q_bias": "attn_q.bias",
    "k_bias": "attn_k.bias",
    "v_bias": "attn_v.bias",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "mlp_norm": "ffn_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
}


def random_params(config):
    rng = np.random.default_rng(0)
    shapes = jax.tree.map(np.shape, loading._empty_params(config, np.dtype(np.float32)))
    return jax.tree.map(
        lambda s: rng.standard_normal(s, np.float32) * s[-1] ** -0.5 + (len(s) < 3),
        shapes,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


def llama_cpp_permute(weights, n_head):
    """From llama.cpp's convert_hf_to_gguf.py."""
    return (
        weights.reshape(n_head, 2, weights.shape[0] // n_head // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def apart(layers):
    """The fused weights by the names of NAMES."""
    out = {key: w for key, w in layers.items() if key in NAMES}
    for suffix in ("", "_bias"):
        if f"qkv{suffix}" in layers:
            w = layers[f"qkv{suffix}"]
            out |= {f"q{suffix}": w[:, :, :-2], f"k{suffix}": w[:, :, -2], f"v{suffix}": w[:, :, -1]}
    for fused, keys in (("qk_norm", ("q_norm", "k_norm")), ("gate_up", ("gate", "up"))):
        if fused in layers:
            out |= {key: layers[fused][:, i] for i, key in enumerate(keys)}
    return out


def tensors_of(config, params):
    yield "token_embd.weight", params["embed"]
    yield "output_norm.weight", params["final_norm"]
    if "head" in params:
        yield "output.weight", params["head"]
    width = {"o": (config.d_model, -1)}
    for key, stacked in apart(params["layers"]).items():
        for layer, w in enumerate(stacked):
            if key in ("q", "k", "v"):
                w = w.reshape(-1, config.d_model)
                if config.family == "llama" and key != "v":
                    w = llama_cpp_permute(w, config.n_heads if key == "q" else config.n_kv_heads)
            w = w.reshape(width.get(key, w.shape)) if key == "o" else w.reshape(-1) if "bias" in key else w
            yield f"blk.{layer}.{NAMES[key]}", w


def write(path, config, params, *, quantise=None, extra=(), keys=()):
    arch = config.family
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    letters = [*(chr(33 + i) for i in range(config.vocab_size - 1)), "01"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(letters)
    writer.add_token_types([3] + [1] * (len(letters) - 1))
    writer.add_token_merges(["0 1"])
    writer.add_eos_token_id(0)
    for key, value in keys:
        writer.add_string(key, value) if isinstance(value, str) else writer.add_uint32(key, value)
    for name, w in [*tensors_of(config, params), *extra]:
        kind = quantise if quantise is not None and w.ndim == 2 and w.shape[-1] % 32 == 0 else None
        if kind is None:
            writer.add_tensor(name, np.ascontiguousarray(w, np.float32))
        else:
            writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(w), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("name", CONFIGS)
def test_float32_weights_come_back_exactly(tmp_path, name):
    config = CONFIGS[name]
    params = random_params(config)
    path = write(tmp_path / "m.gguf", config, params)
    loaded_config, loaded = loading.load_params(path)
    assert loaded_config == config
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_transformers_reading_the_same_file(tmp_path, name, transformers_gguf):
    import torch

    config = CONFIGS[name]
    path = write(tmp_path / "m.gguf", config, random_params(config))
    theirs = transformers_gguf(path, head_dim=config.head_dim)  # which it takes from the file for Llama only
    tokens_BT = np.random.default_rng(1).integers(0, config.vocab_size, (2, 12))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens_BT)).logits.numpy()
    assert np.ptp(expected) > 1.0
    model, _ = loading.load_model(path)
    np.testing.assert_allclose(np.asarray(logits(model, tokens_BT)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16", "BF16"])
def test_quantised_blocks_are_undone_by_the_formula(tmp_path, kind):
    """Q8_0: a block of 32 is round(w/d) * d with d = max|w| / 127 in float16; the others within their step."""
    config = CONFIGS["llama"]
    params = random_params(config)
    path = write(tmp_path / "m.gguf", config, params, quantise=gguf.GGMLQuantizationType[kind])
    loaded = loading.load_params(path)[1]
    w, got = params["layers"]["gate_up"].reshape(-1, 32), loaded["layers"]["gate_up"].reshape(-1, 32)
    if kind == "Q8_0":
        d = (np.abs(w).max(1, keepdims=True) / np.float32(127)).astype(np.float16).astype(np.float32)
        np.testing.assert_allclose(got, np.round(w / (np.abs(w).max(1, keepdims=True) / 127)) * d, atol=1e-6)
    step = {"Q8_0": 1 / 127, "Q4_0": 1 / 7, "F16": 2**-10, "BF16": 2**-8}[kind]
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_allclose(a, b, atol=step * np.abs(a).max())
    assert np.any(got != w)


def test_llama3_scaling_is_recovered_from_its_divisors(tmp_path):
    """llama.cpp stores, for every frequency, what divides it; transformers' own formula supplies the expectation."""
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = CONFIGS["llama"]
    hf = LlamaConfig(
        hidden_size=96,
        num_attention_heads=3,
        head_dim=32,
        rope_parameters=scaling | {"rope_theta": config.rope_theta},
        max_position_embeddings=131072,
    )
    scaled = ROPE_INIT_FUNCTIONS["llama3"](hf, torch.device("cpu"))[0].numpy()
    plain = config.rope_theta ** (-np.arange(0, 32, 2) / 32)
    factors = (plain / scaled).astype(np.float32)
    path = write(tmp_path / "m.gguf", config, random_params(config), extra=[("rope_freqs.weight", factors)])
    got = loading.load_config(path).rope_scaling
    assert got == Llama3Rope(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192)

    longrope = np.linspace(1, 4, 16, dtype=np.float32)
    path = write(tmp_path / "n.gguf", config, random_params(config), extra=[("rope_freqs.weight", longrope)])
    refused(path, "rope_freqs are not llama3 scaling; use the Hugging Face directory")


def refused(path, message):
    with pytest.raises(InputError, match=message) as error:
        loading.load_model(path)
    assert "\n" not in str(error.value) and "; " in str(error.value)


def test_refusals(tmp_path):
    config = CONFIGS["qwen2"]
    params = random_params(config)
    path = write(tmp_path / "m.gguf", config, params, extra=[("blk.0.ffn_gate_inp.weight", np.ones((4, 32)))])
    refused(path, "ffn_gate_inp.weight in .*m.gguf is not of a qwen2 decoder")
    write(path, config, params, keys=[("qwen2.expert_count", 8)])
    refused(path, "mixtures of experts")
    write(path, config, params, keys=[("qwen2.rope.scaling.type", "yarn")])
    refused(path, "rope scaling 'yarn'")
    write(path, config, params, keys=[("qwen2.rope.scaling.factor", 4)])
    refused(path, "rope scaling 'linear'")  # what llama.cpp makes of a factor without a type
    fewer = {**params, "layers": {k: w[:1] for k, w in params["layers"].items()}}
    write(path, config, fewer)
    refused(path, "no tensor blk.1.attn_norm.weight")
    misshapen = {**params, "final_norm": np.ones(16, np.float32)}
    write(path, config, misshapen)
    refused(path, r"output_norm.weight in .* is \(16,\) where its metadata says \(32,\)")
    gguf_writer = gguf.GGUFWriter(path, "gpt2")
    gguf_writer.write_header_to_file()
    gguf_writer.write_kv_data_to_file()
    gguf_writer.close()
    refused(path, "architecture 'gpt2' is not supported")


def test_damaged_files(tmp_path):
    config = CONFIGS["llama"]
    path = write(tmp_path / "m.gguf", config, random_params(config))
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) * 9 // 10])
    refused(path, "m.gguf is truncated: tensor .* is not all there")
    for cut in (300, 900, 1500):
        path.write_bytes(raw[:cut])
        refused(path, "m.gguf has a damaged GGUF header; copy")
    path.write_bytes(b"GG")
    refused(path, "not a complete GGUF file")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    refused(path, "is not a GGUF file")
    path.write_bytes(b"GGUF" + (99).to_bytes(4, "little") + raw[8:])
    refused(path, "is GGUF version 99")


def test_without_the_package_gguf(tmp_path, monkeypatch):
    config = CONFIGS["llama"]
    path = write(tmp_path / "m.gguf", config, random_params(config))
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "gguf":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    refused(path, r"m.gguf needs the package gguf; run `pip install 'iiblpo_jax\[gguf\]'`")


def test_forward_of_a_loaded_model_is_that_of_its_weights(tmp_path):
    config = CONFIGS["qwen3"]
    params = random_params(config)
    tokens = np.arange(10)[None]
    model, _ = loading.load_model(write(tmp_path / "m.gguf", config, params))
    np.testing.assert_array_equal(np.asarray(logits(model, tokens)), np.asarray(logits(bind(config, params), tokens)))


def header(n_tensors=0, n_keys=0, rest=b""):
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_keys) + rest


def key(name, kind, value=b""):
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + value


def tensor(name, axes, kind=0, offset=0):
    shape = struct.pack(f"<I{len(axes)}Q", len(axes), *axes)
    return struct.pack("<Q", len(name)) + name + shape + struct.pack("<IQ", kind, offset)


@pytest.mark.parametrize(
    "whole",
    [
        header(n_keys=2**63),
        header(n_tensors=2**63),
        header(n_keys=1, rest=struct.pack("<Q", 2**63)),  # the length of a name
        header(n_keys=1, rest=key(b"a", 8, struct.pack("<Q", 2**64 - 1))),  # of a string
        header(n_keys=1, rest=key(b"a", 9, struct.pack("<IQ", 4, 2**60))),  # of an array of numbers
        header(n_keys=1, rest=key(b"a", 9, struct.pack("<IQ", 4, 3) + bytes(4))),  # cut off at the end of the file
        header(n_keys=1, rest=key(b"a", 9, struct.pack("<IQ", 8, 2**40) + bytes(64))),  # of strings
        header(n_keys=1, rest=key(b"a", 9, struct.pack("<IQ", 9, 1) * 5000)),  # arrays in arrays
        header(n_keys=1, rest=key(b"a", 77)),
        header(n_keys=1, rest=key(b"a\xff", 4, bytes(4))),
        header(n_keys=1, rest=key(b"general.alignment", 4, struct.pack("<I", 0))),
        header(n_keys=1, rest=key(b"general.alignment", 8, struct.pack("<Q", 1) + b"8")),
        header(n_tensors=1, rest=tensor(b"a", [])),
        header(n_tensors=1, rest=tensor(b"a", [1] * 5)),
        header(n_tensors=1, rest=tensor(b"a", [2**63, 2**63])),
        header(n_tensors=1, rest=tensor(b"a", [4, 0])),
        header(n_tensors=1, rest=struct.pack("<Q", 1) + b"a" + struct.pack("<I", 2**32 - 1)),
    ],
)
def test_impossible_headers(tmp_path, whole):
    (tmp_path / "m.gguf").write_bytes(whole)
    with pytest.raises(InputError, match=r"(damaged GGUF header|not a complete GGUF file); copy the file again"):
        GGUFContainer(tmp_path / "m.gguf")


def test_a_tensor_twice_overlapping_and_beyond_the_end(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(header(n_tensors=2, rest=tensor(b"a", [4]) * 2))
    with pytest.raises(InputError, match="names a tensor twice"):
        GGUFContainer(path)
    for offset, message in ((8, "tensors a and b in .* overlap"), (2**64 - 1, "tensor b is not all there")):
        path.write_bytes(header(n_tensors=2, rest=tensor(b"a", [4]) + tensor(b"b", [4], offset=offset)) + bytes(64))
        with pytest.raises(InputError, match=message):
            GGUFContainer(path).check()
    path.write_bytes(header(n_tensors=2, rest=tensor(b"b", [4], offset=16) + tensor(b"a", [4])) + bytes(64))
    GGUFContainer(path).check()
