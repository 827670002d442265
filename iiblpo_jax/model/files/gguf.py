"""A model inside one GGUF file: its config, its weights in our layout, and its tokenizer."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.model.attention import rope_frequencies
from iiblpo_jax.model.config import Llama3Rope, ModelConfig
from iiblpo_jax.model.files import families
from iiblpo_jax.model.files.gguf_format import GGUFContainer
from iiblpo_jax.model.tokens import gguf as gguf_tokenizer
from iiblpo_jax.model.tokens.tokenizer import Tokenizer

LAYER_TENSORS = {
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
TOP_TENSORS = {"embed": "token_embd.weight", "final_norm": "output_norm.weight", "head": "output.weight"}
ROPE_FACTORS = "rope_freqs.weight"  # how llama.cpp stores llama3 scaling: the divisor of every frequency
HF_NAMES = {  # of sizes that have a limit of their own
    "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_attention_heads",
    "attention.key_length": "head_dim",
    "context_length": "max_position_embeddings",
}
ARCHITECTURES = ("llama", "qwen2", "qwen3")  # llama.cpp files Mistral under llama; the arithmetic is the same


class GGUFFile:
    """Reads one file's header at once and its tensors on demand."""

    def __init__(self, path: pathlib.Path):
        self._file = GGUFContainer(path)
        self._path = self._file.path

    def config(self) -> ModelConfig:
        """The architecture; InputError if the decoder does not have it."""
        family = self._file.metadata.get("general.architecture")
        if not isinstance(family, str) or family not in ARCHITECTURES:
            raise InputError(f"{self._path}: architecture {family!r} is not supported; use {', '.join(ARCHITECTURES)}")
        if self._size("expert_count", 0, least=0):
            raise InputError(f"{self._path}: mixtures of experts are not supported; use a dense model")
        # In llama.cpp a factor without a type scales linearly.
        factor = self._get("rope.scaling.factor", self._get("rope.scale_linear", 0.0))
        kind = self._get("rope.scaling.type", "none" if factor in (0.0, 1.0) else "linear")
        if not isinstance(kind, str) or kind != "none":
            raise InputError(f"{self._path}: rope scaling {kind!r} is not supported; use a model without it")
        config = ModelConfig(**self._sizes(), family=family)
        if config.n_heads % config.n_kv_heads or config.head_dim % 2:
            raise InputError(
                f"{self._path}: {config.n_heads} heads of width {config.head_dim} cannot share {config.n_kv_heads} "
                "key/value heads; copy the file again"
            )
        rotated = self._size("rope.dimension_count", config.head_dim)
        if rotated != config.head_dim:
            raise InputError(
                f"{self._path}: rope over {rotated} of {config.head_dim} dimensions is not supported; "
                "use a model that rotates whole heads"
            )
        if ROPE_FACTORS in self._file.tensors:
            config = dataclasses.replace(config, rope_scaling=self._llama3_rope(config))
        return config

    def _sizes(self) -> dict[str, Any]:
        width, heads = self._size("embedding_length"), self._size("attention.head_count")
        tensors = self._file.tensors
        embed = tensors.get(TOP_TENSORS["embed"])
        if embed is None or embed.shape[0] > families.LARGEST_SIZE:
            raise InputError(f"{self._path} has no tensor {TOP_TENSORS['embed']}; copy the file again")
        return {
            "vocab_size": embed.shape[0],
            "d_model": width,
            "d_ff": self._size("feed_forward_length"),
            "n_layers": self._size("block_count"),
            "n_heads": heads,
            "n_kv_heads": self._size("attention.head_count_kv", heads),
            "head_dim": self._size("attention.key_length", width // heads),
            "norm_eps": self._number("attention.layer_norm_rms_epsilon", 1e-6),
            "tied_embeddings": TOP_TENSORS["head"] not in tensors,
            "qkv_bias": "blk.0.attn_q.bias" in tensors,
            "qk_norm": "blk.0.attn_q_norm.weight" in tensors,
            "max_positions": self._size("context_length"),
            "rope_theta": self._number("rope.freq_base", 10_000.0),
        }

    def _llama3_rope(self, config: ModelConfig) -> Llama3Rope:
        """The scaling whose divisors the file lists: its largest divisor is the factor, the rest Meta never varied."""
        if self._file.tensors[ROPE_FACTORS].shape != (config.head_dim // 2,):
            raise InputError(f"{self._path}: its rope_freqs are not llama3 scaling; use the Hugging Face directory")
        divisors = self._file.array(ROPE_FACTORS)
        if not (np.isfinite(divisors).all() and (divisors > 0).all()):
            raise InputError(f"{self._path}: its rope_freqs are not positive numbers; copy the file again")
        scaling = Llama3Rope(
            factor=float(divisors.max()), low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=8192
        )
        plain = rope_frequencies(config)
        scaled = rope_frequencies(dataclasses.replace(config, rope_scaling=scaling))
        if divisors.shape != plain.shape or not np.allclose(plain / scaled, divisors, rtol=1e-4):
            raise InputError(f"{self._path}: its rope_freqs are not llama3 scaling; use the Hugging Face directory")
        return scaling

    def check(self, config: ModelConfig) -> None:
        """That the file holds every tensor of `config`, whole, and no other: before anything is allocated for them.

        Raises:
          InputError: a tensor missing, truncated, of another shape, superfluous, or the package gguf not installed.
        """
        try:
            import gguf  # noqa: F401
        except ImportError as error:
            raise InputError(f"{self._path} needs the package gguf; run `pip install 'iiblpo_jax[gguf]'`") from error
        tensors = self._file.tensors
        if config.n_layers > len(tensors):  # before a place is made for every layer that the metadata claims
            raise InputError(
                f"{self._path} has {len(tensors)} tensors for {config.n_layers} layers; copy the file again"
            )
        wanted = self._places(config)
        for name, place in wanted.items():
            if name not in tensors:
                raise InputError(f"{self._path} has no tensor {name}; copy the file again")
            if tensors[name].shape != place.shape:
                raise InputError(
                    f"tensor {name} in {self._path} is {tensors[name].shape} where its metadata says "
                    f"{place.shape}; copy the file again"
                )
        for name in tensors.keys() - wanted.keys() - {ROPE_FACTORS}:
            raise InputError(f"tensor {name} in {self._path} is not of a {config.family} decoder; use another file")
        self._file.check()

    def fill(self, config: ModelConfig, params: dict) -> None:
        """Dequantises every tensor into `params`, nested dict of numpy arrays of the config's shapes; `check` first."""
        for name, place in self._places(config).items():
            if config.family == "llama" and place.key in ("q", "k"):
                heads = config.n_heads if place.key == "q" else config.n_kv_heads
                place.write(params, half_rotation(self._file.array(name), heads))
            elif not place.part(params).flags.c_contiguous:  # a head here, a head there
                place.write(params, self._file.array(name))
            else:
                flat = place.part(params).reshape(-1)
                for start, values in self._file.chunks(name):
                    flat[start : start + len(values)] = values

    def _places(self, config: ModelConfig) -> dict[str, families.TensorPlace]:
        return {_gguf_name(place): place for place in families.places(config).values()}

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the metadata."""
        return gguf_tokenizer.build(self._file.metadata, str(self._path))

    def _get(self, key: str, default: Any) -> Any:
        return self._file.metadata.get(f"{self._file.metadata['general.architecture']}.{key}", default)

    def _size(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        value = self._get(key, default)
        if type(value) is not int or not least <= value <= families.LARGEST.get(
            HF_NAMES.get(key, key), families.LARGEST_SIZE
        ):
            raise InputError(
                f"{self._path}: {key} is {repr(value)[:80]}, not one positive integer; use a plain dense model"
            )
        return value

    def _number(self, key: str, default: float) -> float:
        """A float32 from the file as the decimal number that was written: 9.999999747378752e-06 is 1e-5."""
        value = self._get(key, default)
        if type(value) not in (int, float) or not 0 < value < 1e30:
            raise InputError(f"{self._path}: {key} is {repr(value)[:80]}, not a positive number; copy the file again")
        return float(str(np.float32(value)))


def half_rotation(w_RC: np.ndarray, heads: int) -> np.ndarray:
    """Undoes llama.cpp's order of the rows of q and k: its rope pairs rows (2i, 2i+1) of a head, ours (i, i + E/2)."""
    rows, columns = w_RC.shape
    return w_RC.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _gguf_name(place: families.TensorPlace) -> str:
    if place.key in TOP_TENSORS:
        return TOP_TENSORS[place.key]
    return f"blk.{place.index[0]}.{LAYER_TENSORS[place.key]}"
