"""Architectures of well-known models, for planning a run before its weights are anywhere near (`preset:NAME`)."""

import dataclasses

from iiblpo_jax.model.config import Llama3Rope, ModelConfig


def _qwen2(vocab_size, d_model, d_ff, n_layers, n_heads, n_kv_heads, *, tied=False, theta=1e6, max_positions=32_768):
    return ModelConfig(
        family="qwen2", vocab_size=vocab_size, d_model=d_model, d_ff=d_ff, n_layers=n_layers, n_heads=n_heads,
        n_kv_heads=n_kv_heads, head_dim=d_model // n_heads, rope_theta=theta, norm_eps=1e-6, tied_embeddings=tied,
        qkv_bias=True, max_positions=max_positions,
    )  # fmt: skip


def _qwen3(d_model, d_ff, n_layers, n_heads, *, tied=False):
    return ModelConfig(
        family="qwen3", vocab_size=151_936, d_model=d_model, d_ff=d_ff, n_layers=n_layers, n_heads=n_heads,
        n_kv_heads=8, head_dim=128, rope_theta=1e6, norm_eps=1e-6, tied_embeddings=tied, qk_norm=True,
        max_positions=40_960,
    )  # fmt: skip


def _llama3(d_model, d_ff, n_layers, n_heads, *, head_dim, factor, tied=False):
    scaling = Llama3Rope(factor=factor, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192)
    return ModelConfig(
        family="llama", vocab_size=128_256, d_model=d_model, d_ff=d_ff, n_layers=n_layers, n_heads=n_heads,
        n_kv_heads=8, head_dim=head_dim, rope_theta=5e5, rope_scaling=scaling, norm_eps=1e-5, tied_embeddings=tied,
        max_positions=131_072,
    )  # fmt: skip


_MISTRAL_7B = ModelConfig(
    family="mistral", vocab_size=32_000, d_model=4096, d_ff=14_336, n_layers=32, n_heads=32, n_kv_heads=8,
    head_dim=128, rope_theta=1e4, norm_eps=1e-5, tied_embeddings=False, max_positions=32_768, sliding_window=4096,
)  # fmt: skip
_LLAMA2_7B = ModelConfig(
    family="llama", vocab_size=32_000, d_model=4096, d_ff=11_008, n_layers=32, n_heads=32, n_kv_heads=32,
    head_dim=128, rope_theta=1e4, norm_eps=1e-5, tied_embeddings=False, max_positions=4096,
)  # fmt: skip
_SMOLLM2_135M = ModelConfig(
    family="llama", vocab_size=49_152, d_model=576, d_ff=1536, n_layers=30, n_heads=9, n_kv_heads=3, head_dim=64,
    rope_theta=1e5, norm_eps=1e-5, tied_embeddings=True, max_positions=8192,
)  # fmt: skip

PRESETS: dict[str, ModelConfig] = {
    "qwen2.5-0.5b": _qwen2(151_936, 896, 4864, 24, 14, 2, tied=True),
    "qwen2.5-1.5b": _qwen2(151_936, 1536, 8960, 28, 12, 2, tied=True, max_positions=131_072),
    "qwen2.5-7b": _qwen2(152_064, 3584, 18_944, 28, 28, 4, max_positions=131_072),
    "qwen2.5-math-7b": _qwen2(152_064, 3584, 18_944, 28, 28, 4, theta=1e4, max_positions=4096),
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16, tied=True),
    "qwen3-1.7b": _qwen3(2048, 6144, 28, 16, tied=True),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32, tied=True),
    "qwen3-8b": _qwen3(4096, 12_288, 36, 32),
    "qwen3-14b": _qwen3(5120, 17_408, 40, 40),
    "llama-2-7b": _LLAMA2_7B,
    "llama-3.1-8b": _llama3(4096, 14_336, 32, 32, head_dim=128, factor=8.0),
    "llama-3.2-1b": _llama3(2048, 8192, 16, 32, head_dim=64, factor=32.0, tied=True),
    "mistral-7b-v0.1": _MISTRAL_7B,
    "mistral-7b-v0.3": dataclasses.replace(_MISTRAL_7B, vocab_size=32_768, rope_theta=1e6, sliding_window=None),
    "smollm2-135m": _SMOLLM2_135M,
}
