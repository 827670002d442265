"""config.json <-> ModelConfig, tensor names, and the refusals."""

import math

import pytest

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.model.config import Llama3Rope
from iiblpo_jax.model.files.families import config_from_hf, config_to_hf, places, read_config

# The config.json files as their authors published them (Qwen2.5-0.5B, Llama-3.2-1B, Mistral-7B-v0.1, Qwen3-0.6B).
QWEN2_5 = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
LLAMA3_2 = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
PUBLISHED = {"qwen2.5-0.5b": QWEN2_5, "llama-3.2-1b": LLAMA3_2, "mistral-7b-v0.1": MISTRAL, "qwen3-0.6b": QWEN3}


def test_published_files():
    qwen = config_from_hf(QWEN2_5, "x")
    assert (qwen.head_dim, qwen.qkv_bias, qwen.qk_norm, qwen.sliding_window) == (64, True, False, None)
    llama = config_from_hf(LLAMA3_2, "x")
    assert llama.rope_theta == 500_000.0
    assert llama.rope_scaling == Llama3Rope(
        factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192
    )
    mistral = config_from_hf(MISTRAL, "x")
    assert (mistral.head_dim, mistral.sliding_window, mistral.tied_embeddings) == (128, 4096, False)
    assert (config_from_hf(QWEN3, "x").head_dim, config_from_hf(QWEN3, "x").qk_norm) == (128, True)


def test_newer_spelling_of_rope_means_the_same():
    old = config_from_hf(LLAMA3_2, "x")
    new = {k: v for k, v in LLAMA3_2.items() if k not in ("rope_theta", "rope_scaling")}
    new["rope_parameters"] = {**LLAMA3_2["rope_scaling"], "rope_theta": 500000.0}
    assert config_from_hf(new, "x") == old
    plain = {k: v for k, v in QWEN3.items() if k != "rope_theta"}
    plain["rope_parameters"] = {"rope_type": "default", "rope_theta": 1000000}
    assert config_from_hf(plain, "x") == config_from_hf(QWEN3, "x")


def test_scaling_in_either_spelling_counts():
    """Tools that change one of the two leave the other behind."""
    scaled = config_from_hf(LLAMA3_2, "x")
    plain = {"rope_type": "default", "rope_theta": 500000.0}
    assert config_from_hf(LLAMA3_2 | {"rope_parameters": plain}, "x") == scaled
    newer = {"rope_scaling": None, "rope_parameters": {**LLAMA3_2["rope_scaling"], "rope_theta": 500000.0}}
    assert config_from_hf(LLAMA3_2 | newer, "x") == scaled
    assert config_from_hf(LLAMA3_2 | newer | {"rope_scaling": {"type": "default", "factor": 1.0}}, "x") == scaled


@pytest.mark.parametrize("hf", PUBLISHED.values(), ids=PUBLISHED)
def test_what_we_write_says_what_we_read(hf):
    config = config_from_hf(hf, "x")
    written = config_to_hf(config)
    assert config_from_hf(written, "x") == config
    assert written["architectures"] == hf["architectures"]
    old_only = {k: v for k, v in written.items() if k != "rope_parameters"}
    new_only = {k: v for k, v in written.items() if k not in ("rope_theta", "rope_scaling")}
    assert config_from_hf(old_only, "x") == config_from_hf(new_only, "x") == config


@pytest.mark.parametrize("hf", PUBLISHED.values(), ids=PUBLISHED)
def test_transformers_reads_the_same_numbers(hf):
    """Keys that a file leaves out mean what transformers takes them to mean."""
    from transformers import AutoConfig

    needed = (
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
    )
    sparse = {key: hf[key] for key in needed} | {"num_attention_heads": 32}
    ours, theirs = config_from_hf(sparse, "x"), AutoConfig.for_model(**sparse)
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // 32
    assert (ours.n_kv_heads, ours.head_dim) == (theirs.num_key_value_heads, head_dim)
    assert (ours.norm_eps, ours.tied_embeddings) == (theirs.rms_norm_eps, theirs.tie_word_embeddings)
    assert ours.max_positions == theirs.max_position_embeddings
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.sliding_window == getattr(theirs, "sliding_window", None)


REFUSED = {
    "model_type 'gpt2' is not supported; use one of qwen2, qwen3, llama, mistral": {"model_type": "gpt2"},
    "rope scaling 'yarn' is not supported": {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    "rope scaling 'linear' is not supported": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}},
    "llama3 rope scaling lacks factor": {"rope_scaling": {"rope_type": "llama3"}},
    "rope scaling 'linear' is not supported; use": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
        "rope_scaling": {"type": "linear", "factor": 2.0},
    },
    "rope scaling 'mrope' is not": {"rope_scaling": {"type": "mrope", "rope_type": "default"}},
    "rope scaling None is not supported": {"rope_scaling": {"factor": 2.0}},
    "rope_theta, rope_scaling and rope_parameters contradict": {"rope_parameters": {"rope_theta": 1e4}},
    "contradict one another; delete those": {"rope_parameters": {**LLAMA3_2["rope_scaling"], "factor": 8.0}},
    "partial_rotary_factor is not supported; use": {"rope_parameters": {"partial_rotary_factor": 0.5}},
    "rope_parameters is not a JSON object": {"rope_parameters": [1]},
    "differ between layers": {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
    "partial_rotary_factor": {"partial_rotary_factor": 0.5},
    "rope_theta is 'big'": {"rope_theta": "big"},
    "hidden_act 'gelu' is not supported": {"hidden_act": "gelu"},
    "attention_bias is not supported for llama": {"attention_bias": True},
    "weights are quantised": {"quantization_config": {"bits": 4}},
    "num_hidden_layers is None": {"num_hidden_layers": None},
    "hidden_size is 0": {"hidden_size": 0},
    "32 heads of width 64 cannot share 5": {"num_key_value_heads": 5},
    "mix full and sliding": {
        "model_type": "qwen2",
        "use_sliding_window": True,
        "sliding_window": 8,
        "max_window_layers": 4,
    },
}


@pytest.mark.parametrize("message", REFUSED)
def test_refusals_are_one_line_that_names_the_file(message):
    with pytest.raises(InputError, match=message) as error:
        config_from_hf(LLAMA3_2 | REFUSED[message], "dir/config.json")
    assert str(error.value).startswith("dir/config.json: ") and "\n" not in str(error.value)
    assert "; " in str(error.value)


def test_unreadable_config(tmp_path):
    for text in ("{", "[1]", ""):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InputError, match=r"config\.json is not .*copy the file again"):
            read_config(tmp_path / "config.json")


def test_slots_cover_the_published_parameter_counts():
    """Sums of the tensor sizes against the counts on the model cards (Qwen2.5-0.5B 0.49B, Llama-3.2-1B 1.24B)."""
    tensors = {name: places(config_from_hf(hf, name)).values() for name, hf in PUBLISHED.items()}
    count = {name: sum(math.prod(place.shape) for place in held) for name, held in tensors.items()}
    assert count["qwen2.5-0.5b"] == 494_032_768
    assert count["llama-3.2-1b"] == 1_235_814_400
    assert count["mistral-7b-v0.1"] == 7_241_732_096
    assert count["qwen3-0.6b"] == 596_049_920


def test_slot_shapes_are_those_of_the_checkpoint():
    tensors = places(config_from_hf(QWEN2_5, "x"))
    assert tensors["model.layers.23.self_attn.k_proj.weight"].shape == (128, 896)
    assert tensors["model.layers.0.self_attn.q_proj.bias"].shape == (896,)
    assert tensors["model.layers.0.self_attn.o_proj.weight"].shape == (896, 896)
    assert tensors["model.layers.0.mlp.down_proj.weight"].shape == (896, 4864)
    assert "lm_head.weight" not in tensors and "model.norm.weight" in tensors
