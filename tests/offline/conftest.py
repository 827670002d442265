"""A tiny model that run configs can name, and cases of tokens that it knows."""

import json

import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from iiblpo_jax.defaults import default_config
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.decoder import Decoder, params_of
from iiblpo_jax.model.files.loading import load_model
from iiblpo_jax.model.files.saving import save_model
from iiblpo_jax.offline.examples import Example

ARITHMETIC = "package:iiblpo_jax/data/assets/arithmetic"


@pytest.fixture(scope="package")
def tiny_model(tmp_path_factory) -> str:
    """Two random layers under the tokenizer of the embedded models."""
    known, tokenizer = load_model(ARITHMETIC)
    config = ModelConfig(
        family="qwen3",
        vocab_size=known.config.vocab_size,
        d_model=16,
        d_ff=32,
        n_layers=2,
        n_heads=2,
        n_kv_heads=1,
        head_dim=8,
        qk_norm=True,
        tied_embeddings=True,
        max_positions=64,
    )
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_model(path, config, params_of(Decoder(config, rngs=nnx.Rngs(3))), tokenizer)
    return str(path)


@pytest.fixture
def make_config(tiny_model):
    """A function that makes the config of a short run on the tiny model; keys with __ for dots."""

    def make(**changes):
        config = default_config()
        changes = {
            "model__path": tiny_model,
            "train__steps": 3,
            "train__prompts_per_step": 4,
            "rollout__max_prompt": 12,
            "rollout__max_tokens": 40,
            "task__options": {"train_size": 32},
            "optim__lr": 1e-3,
            "eval__problems": 6,
            "checkpoint__every": 0,
        } | changes
        for key, value in changes.items():
            section, name = key.split("__")
            config[section][name] = ConfigDict(value) if isinstance(value, dict) else value
        return config

    return make


@pytest.fixture
def write_lines(tmp_path):
    """A function that writes objects as JSON Lines and returns the path."""

    def write(name, rows):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture(scope="session")
def make_cases():
    """A function of (P, G): cases whose responses differ and share their prompt; one response is missing."""

    def make(p, g, *, vocab=23, missing=True):
        rng = np.random.default_rng(p * 10 + g)
        cases = []
        for _ in range(p):
            prompt = tuple(rng.integers(1, vocab, rng.integers(2, 5)).tolist())
            cases.append(
                tuple(Example(prompt, tuple(rng.integers(1, vocab, rng.integers(2, 7)).tolist())) for _ in range(g))
            )
        if missing:
            cases[1] = tuple(example._replace(response=()) for example in cases[1])
        return cases

    return make
