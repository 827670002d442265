"""Fixtures for models on disk: one small architecture per variant of a family, and a tokenizer that fits them."""

import pytest

from iiblpo_jax.model.config import Llama3Rope, ModelConfig
from iiblpo_jax.model.tokens.backends import HuggingFaceBackend
from iiblpo_jax.model.tokens.tokenizer import Tokenizer

SIZES = {"vocab_size": 29, "d_ff": 20, "n_layers": 2, "max_positions": 64}
ROPE = Llama3Rope(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=16)
VARIANTS = {
    "qwen2-tied": {"family": "qwen2", "d_model": 24, "n_heads": 3, "n_kv_heads": 1, "head_dim": 8, "qkv_bias": True},
    "qwen2-untied-wide-heads": {
        "family": "qwen2",
        "d_model": 16,
        "n_heads": 6,
        "n_kv_heads": 3,
        "head_dim": 8,
        "qkv_bias": True,
        "tied_embeddings": False,
        "rope_theta": 1e6,
    },
    "qwen3-odd-heads": {
        "family": "qwen3",
        "d_model": 20,
        "n_heads": 5,
        "n_kv_heads": 5,
        "head_dim": 8,
        "qk_norm": True,
    },
    "qwen3-untied": {
        "family": "qwen3",
        "d_model": 24,
        "n_heads": 6,
        "n_kv_heads": 2,
        "head_dim": 16,
        "qk_norm": True,
        "tied_embeddings": False,
    },
    "qwen2-sliding": {
        "family": "qwen2",
        "d_model": 16,
        "n_heads": 2,
        "n_kv_heads": 2,
        "head_dim": 8,
        "qkv_bias": True,
        "sliding_window": 7,
    },
    "llama2": {
        "family": "llama",
        "d_model": 24,
        "n_heads": 3,
        "n_kv_heads": 3,
        "head_dim": 8,
        "tied_embeddings": False,
    },
    "llama3-scaled": {
        "family": "llama",
        "d_model": 36,
        "n_heads": 9,
        "n_kv_heads": 3,
        "head_dim": 16,
        "rope_theta": 5e5,
        "rope_scaling": ROPE,
        "norm_eps": 1e-5,
    },
    "mistral-sliding": {
        "family": "mistral",
        "d_model": 24,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 8,
        "sliding_window": 5,
        "tied_embeddings": False,
    },
    "mistral-full": {"family": "mistral", "d_model": 24, "n_heads": 3, "n_kv_heads": 1, "head_dim": 4},
}


@pytest.fixture(params=VARIANTS, scope="session")
def family_config(request) -> ModelConfig:
    """Every family, with odd head counts, head_dim other than D/H, tied and untied, biases, q/k norms, rope scaling."""
    return ModelConfig(**(SIZES | VARIANTS[request.param]))


@pytest.fixture(scope="session")
def digits_tokenizer() -> Tokenizer:
    """One token a character, 20 ids."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: i for i, token in enumerate(["<pad>", "<eos>", *"0123456789+-*/=;#?"])}
    rust = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="<pad>"))
    rust.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    rust.decoder = tokenizers.decoders.Fuse()
    return Tokenizer(
        HuggingFaceBackend(PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="<eos>", pad_token="<pad>"))
    )


@pytest.fixture(scope="session")
def transformers_gguf():
    """path -> torch model: transformers' own reading of a GGUF file (its `from_pretrained` would want accelerate)."""
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    def load(path, **overrides):
        parts = load_gguf_checkpoint(str(path))["config"] | overrides
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**parts), dtype=torch.float32)
        tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
        missing, unexpected = model.load_state_dict(tensors, strict=False)
        assert not unexpected and set(missing) <= ({"lm_head.weight"} if model.config.tie_word_embeddings else set())
        model.tie_weights()
        return model.eval()

    return load
