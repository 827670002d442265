"""google-tunix's sampler as a peer process (protocol.py).

    TUNIX_VENV/bin/python tunix_peer.py --model=DIR --dtype=float32

Its packages are kept apart from ours: `python -m venv TUNIX_VENV && TUNIX_VENV/bin/pip install google-tunix`.
Weights come from a Qwen3 directory in Hugging Face format; prompts are token ids, so the tokenizer only parses numbers.
"""

import argparse
import importlib.metadata
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from protocol import serve
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.qwen3 import model as qwen3
from tunix.models.qwen3 import params as qwen3_params


class Numbers:
    """A tokenizer whose text is the token ids."""

    def __init__(self, stop: int, pad: int):
        self.stop, self.pad = stop, pad

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> None:
        return None

    def eos_id(self) -> int:
        return self.stop

    def pad_id(self) -> int:
        return self.pad


def main():
    """Loads the model and serves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    hf = json.loads((Path(options.model) / "config.json").read_text())
    config = qwen3.ModelConfig(
        num_layers=hf["num_hidden_layers"],
        vocab_size=hf["vocab_size"],
        embed_dim=hf["hidden_size"],
        hidden_dim=hf["intermediate_size"],
        num_heads=hf["num_attention_heads"],
        head_dim=hf["head_dim"],
        num_kv_heads=hf["num_key_value_heads"],
        rope_theta=hf["rope_theta"],
        norm_eps=hf["rms_norm_eps"],
        use_tied_embedding=hf["tie_word_embeddings"],
        dtype=jnp.dtype(options.dtype),
        param_dtype=jnp.dtype(options.dtype),
    )
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    model = qwen3_params.create_model_from_safe_tensors(options.model, config, mesh, dtype=jnp.dtype(options.dtype))
    tokenizer, samplers = Numbers(hf["eos_token_id"], hf["pad_token_id"]), {}

    def generate(prompts: list[list[int]], batch: int, max_tokens: int) -> dict:
        """One response a prompt, `batch` prompts at a time in the order given."""
        width = max(map(len, prompts))
        size = width + max_tokens
        if size not in samplers:
            cache = CacheConfig(size, config.num_layers, config.num_kv_heads, config.head_dim)
            samplers[size] = Sampler(model, tokenizer, cache)
        responses, seconds = [], 0.0
        for start in range(0, len(prompts), batch):
            texts = [tokenizer.decode(prompt) for prompt in prompts[start : start + batch]]
            began = time.perf_counter()
            out = samplers[size](
                texts, max_generation_steps=max_tokens, max_prompt_length=width, temperature=1.0, top_p=1.0, seed=start
            )
            seconds += time.perf_counter() - began
            responses += [[*map(int, row), tokenizer.stop] for row in out.tokens]  # it cuts the stop token off
        return {"seconds": seconds, "responses": responses}

    serve({"tunix": importlib.metadata.version("google-tunix"), "jax": jax.__version__}, {"generate": generate})


if __name__ == "__main__":
    main()
