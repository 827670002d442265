"""Damaged model files: read, or refused in one line; never an exception of another kind, never gigabytes or seconds."""

import json
import math
import struct

import damage
import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import strategies as st

from iiblpo_jax.latents.storage import CARD, WEIGHTS, load_latents, save_latents
from iiblpo_jax.model.config import ModelConfig
from iiblpo_jax.model.files import families, loading, saving
from iiblpo_jax.model.files.gguf import GGUFFile, _gguf_name
from iiblpo_jax.model.files.gguf_format import GGUFContainer
from iiblpo_jax.model.files.safetensors import SafetensorsFile
from iiblpo_jax.model.steering.cvae import CVAE
from iiblpo_jax.model.steering.psa import PSA

EMBEDDED = "package:iiblpo_jax/data/assets/arithmetic"
GGUF_CONFIG = ModelConfig(
    family="llama",
    vocab_size=300,
    d_model=16,
    d_ff=32,
    n_layers=1,
    n_heads=2,
    n_kv_heads=1,
    head_dim=8,
    max_positions=32,
)


def with_header(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def read_tensors(path):
    file = SafetensorsFile(path)
    for name in file.names():
        assert file.tensor(name).shape == file.shape(name)


def test_safetensors(tmp_path):
    path = tmp_path / "m.safetensors"
    tensors = {"a": ((3, 2), "F32", [0, 24]), "b": ((4,), "BF16", [24, 32]), "c": ((0,), "F16", [32, 32])}
    header = {name: {"dtype": d, "shape": list(s), "data_offsets": o} for name, (s, d, o) in tensors.items()}
    header["__metadata__"] = {"format": "pt"}
    text, data = json.dumps(header).encode(), bytes(range(32))
    path.write_bytes(with_header(text, data))
    read_tensors(path)  # the whole one is good

    def read(drawn):
        path.write_bytes(drawn)
        read_tensors(path)

    spoiled_header = damage.damaged_json(header).map(lambda value: with_header(damage.json_bytes(value), data))
    damage.hammer(
        spoiled_header | damage.damaged_bytes(with_header(text, data)), read, name="safetensors", examples=400
    )


def gguf_bytes(path, *, sentencepiece: bool) -> bytes:
    gguf = pytest.importorskip("gguf", reason="extra [gguf] is not installed")
    config = GGUF_CONFIG
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_tokenizer_model("llama" if sentencepiece else "gpt2")
    letters = [chr(61 + i) for i in range(config.vocab_size - 4 - 256)]
    writer.add_token_list(["<unk>", "<s>", "</s>", "ab", *(f"<0x{i:02X}>" for i in range(256)), *letters])
    writer.add_token_types([2, 3, 3, 1] + [6] * 256 + [1] * len(letters))
    writer.add_eos_token_id(2)
    if sentencepiece:
        writer.add_token_scores([-float(i) for i in range(config.vocab_size)])
    else:
        writer.add_token_merges(["a b"])
    rng = np.random.default_rng(0)
    for place in families.places(config).values():
        writer.add_tensor(_gguf_name(place), rng.standard_normal(place.shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def gguf_table(container: GGUFContainer) -> dict:
    """The header of a GGUF file as JSON: {"keys": {name: value}, "tensors": [[name, axes, type, offset], ...]}."""
    keys = {key: x.tolist() if isinstance(x, np.ndarray) else x for key, x in container.metadata.items()}
    tensors = [[name, list(reversed(t.shape)), t.kind, t.offset] for name, t in container.tensors.items()]
    return {"keys": keys, "tensors": tensors}


def number(x, code: str) -> bytes:
    width = 8 * struct.calcsize(code)
    whole = int(x) if isinstance(x, int | float) and abs(x) < 1e300 else 7
    return struct.pack("<" + code, whole % 2**width)


def string(x) -> bytes:
    text = str(x).encode("utf-8", "surrogatepass")
    return number(len(text), "Q") + text


def typed(x, depth: int = 0) -> bytes:
    """A metadata value with its type in front."""
    if isinstance(x, int):
        kind, code = (7, "B") if isinstance(x, bool) else (4, "I") if x < 2**32 else (10, "Q")
        return number(kind, "I") + number(x, code)
    if isinstance(x, float):
        return number(6, "I") + struct.pack("<f", x if abs(x) < 1e38 else math.copysign(math.inf, x))
    if not isinstance(x, list) or depth > 20:
        return number(8, "I") + string(x)
    items = [typed(item, depth + 1) for item in x]
    kind = items[0][:4] if items else number(4, "I")
    return number(9, "I") + kind + number(len(items), "Q") + b"".join(i[4:] for i in items if i[:4] == kind)


def gguf_of(table, data: bytes) -> bytes:
    """A container of whatever a damaged table says; what GGUF cannot say becomes something that it can."""
    table = table if isinstance(table, dict) else {}
    keys, tensors = table.get("keys"), table.get("tensors")
    keys = keys if isinstance(keys, dict) else {}
    tensors = [t for t in tensors if isinstance(t, list) and len(t) == 4] if isinstance(tensors, list) else []
    text = b"GGUF" + number(3, "I") + number(len(tensors), "Q") + number(len(keys), "Q")
    text += b"".join(string(key) + typed(x) for key, x in keys.items())
    for name, axes, kind, offset in tensors:
        axes = axes if isinstance(axes, list) else [axes]
        text += string(name) + number(len(axes), "I") + b"".join(number(n, "Q") for n in axes)
        text += number(kind, "I") + number(offset, "Q")
    return text + b"\0" * (-len(text) % 32) + data


@pytest.mark.parametrize("kind", ["bpe", "sentencepiece"])
def test_gguf(tmp_path, kind):
    path = tmp_path / "m.gguf"
    whole = gguf_bytes(path, sentencepiece=kind == "sentencepiece")
    params = loading.load_params(path)[1]
    assert jax.tree.all(jax.tree.map(lambda x: bool(np.isfinite(x).all()), params))

    def read(drawn):
        path.write_bytes(drawn)
        file = GGUFFile(path)
        config = file.config()
        file.check(config)
        if config == GGUF_CONFIG:  # another one would trace another decoder, half a second each
            file.fill(config, params)
        file.tokenizer()

    container = GGUFContainer(path)
    table, header = gguf_table(container), whole.index(b"blk.0.ffn_down") + 200
    data = whole[container._data :]
    read(gguf_of(table, data))
    spoiled = damage.damaged_json(table).map(lambda value: gguf_of(value, data))
    damage.hammer(spoiled | damage.damaged_bytes(whole, header=header), read, name=f"gguf {kind}", examples=60)


def zeros(config: ModelConfig) -> dict:
    return jax.tree.map(np.zeros_like, loading._empty_params(config, np.dtype(np.float32)))


@pytest.fixture
def model(tmp_path, tiny_config):
    """A whole model directory, its tokenizer that of the embedded model."""
    saving.save_model(tmp_path / "model", tiny_config, zeros(tiny_config), loading.load_tokenizer(EMBEDDED))
    return tmp_path / "model"


def test_config_json(tmp_path, tiny_config):
    configs = [
        families.config_to_hf(tiny_config),
        families.config_to_hf(tiny_config) | {"model_type": "mistral", "sliding_window": 5, "layer_types": ["a", "a"]},
        families.config_to_hf(tiny_config)
        | {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            }
        },
    ]
    path = tmp_path / "config.json"

    def read(drawn):
        path.write_bytes(drawn)
        families.read_config(path)

    spoiled = st.sampled_from(configs).flatmap(damage.damaged_json).map(damage.json_bytes)
    broken = damage.damaged_bytes(json.dumps(configs[0]).encode())
    damage.hammer(spoiled | broken, read, name="config.json", examples=400)


def test_index(model):
    whole = {"metadata": {}, "weight_map": {"model.norm.weight": "model.safetensors"}}
    (model / loading.INDEX).write_text(json.dumps(whole))
    (model.parent / "secret.safetensors").write_bytes(b"")

    def read(drawn):
        (model / loading.INDEX).write_bytes(drawn)
        for path in loading._weight_files(model):
            assert path.parent == model and path.is_file()

    damage.hammer(damage.damaged_json(whole).map(damage.json_bytes), read, name="index.json", examples=200)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_tokenizer_files(model, name):
    text = (model / name).read_bytes() if (model / name).exists() else b'{"eos_token_id": [1, 2]}'

    def read(drawn):
        (model / name).write_bytes(drawn)
        loading.load_tokenizer(model).encode("1+2=3")

    spoiled = damage.damaged_json(json.loads(text)).map(damage.json_bytes)
    damage.hammer(spoiled | damage.damaged_bytes(text), read, name=name, examples=60)


@pytest.mark.parametrize("name", [CARD, WEIGHTS])
def test_latents(tmp_path, tiny_config, name):
    params = zeros(tiny_config)
    cvae, psa = CVAE(16, 4, 8, rngs=nnx.Rngs(0)), PSA(tiny_config, 4, 2, rngs=nnx.Rngs(1))
    save_latents(tmp_path / "latent", tiny_config, params, cvae, psa, settings={}, metrics={})
    path = tmp_path / "latent" / name
    whole = path.read_bytes()

    def read(drawn):
        path.write_bytes(drawn)
        load_latents(tmp_path / "latent", tiny_config, params)

    header = 8 + int.from_bytes(whole[:8], "little") if name == WEIGHTS else None
    spoiled = damage.damaged_bytes(whole, header=header)
    if name == CARD:
        spoiled |= damage.damaged_json(json.loads(whole)).map(damage.json_bytes)
    damage.hammer(spoiled, read, name=name, examples=20)
