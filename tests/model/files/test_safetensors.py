"""Our reader and writer against the safetensors library, and damaged files."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from iiblpo_jax.common.errors import InputError
from iiblpo_jax.model.files.safetensors import SafetensorsFile, write_safetensors

TENSORS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3) / 7, "a": np.array([1.5, -2.0], np.float32)}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_reads_what_the_library_writes(tmp_path, dtype):
    tensors = {name: tensor.astype(dtype) for name, tensor in TENSORS.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    file = SafetensorsFile(tmp_path / "x.safetensors")
    assert sorted(file.names()) == ["a", "b"]
    for name, tensor in tensors.items():
        assert file.shape(name) == tensor.shape and file.tensor(name).dtype == tensor.dtype
        np.testing.assert_array_equal(file.tensor(name), tensor)


def test_the_library_reads_what_we_write(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {n: t.shape for n, t in TENSORS.items()}, np.dtype(np.float32), TENSORS.values())
    back = load_file(path)
    assert back.keys() == TENSORS.keys()
    assert all(np.array_equal(back[name], TENSORS[name]) for name in TENSORS)
    assert SafetensorsFile(path).metadata == {"format": "pt", "producer": "iiblpo_jax"}


def test_a_tensor_of_another_shape_is_not_written_quietly(tmp_path):
    with pytest.raises(ValueError, match="b: "):
        write_safetensors(tmp_path / "x", {"b": (3, 2)}, np.dtype(np.float32), [TENSORS["b"]])


def damaged(path, change):
    save_file(TENSORS, path)
    path.write_bytes(change(path.read_bytes()))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[:-1], "truncated: .* bytes of"),
        (lambda raw: raw + b"x", "1 bytes beyond its last tensor"),
        (lambda raw: raw[:20], "not a complete safetensors file"),
        (lambda raw: b"", "not a complete safetensors file"),
        (lambda raw: b"<html>not found</html>", "not a complete safetensors file"),
        (lambda raw: raw[:8] + b"?" + raw[9:], "damaged safetensors header"),
        (lambda raw: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.*git lfs pull"),
    ],
)
def test_damage_is_named(tmp_path, change, message):
    with pytest.raises(InputError, match=message) as error:
        SafetensorsFile(damaged(tmp_path / "m.safetensors", change))
    assert "m.safetensors" in str(error.value) and "\n" not in str(error.value)


def test_integer_weights_and_wrong_byte_counts(tmp_path):
    save_file({"w": np.arange(3)}, tmp_path / "i.safetensors")
    with pytest.raises(InputError, match=r"tensor w in .* is I64; only F32, F16 and BF16"):
        SafetensorsFile(tmp_path / "i.safetensors").tensor("w")
    header = json.dumps({"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "s.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises(InputError, match=r"tensor w in .* does not fill its shape"):
        SafetensorsFile(tmp_path / "s.safetensors").tensor("w")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"data_offsets": [-4, 8]}, "damaged safetensors header"),
        ({"data_offsets": [8, 0]}, "damaged safetensors header"),
        ({"data_offsets": [0.0, 8.0]}, "damaged safetensors header"),
        ({"data_offsets": [False, 8]}, "damaged safetensors header"),
        ({"data_offsets": [0, 1 << 70]}, "damaged safetensors header"),
        ({"shape": [1 << 40, 1 << 40]}, "damaged safetensors header"),
        ({"shape": [-1, -2]}, "damaged safetensors header"),
        ({"shape": [1] * 9}, "damaged safetensors header"),
        ({"dtype": ["F32"]}, "damaged safetensors header"),
    ],
)
def test_impossible_headers(tmp_path, entry, message):
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | entry}).encode()
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises(InputError, match=message):
        SafetensorsFile(tmp_path / "m.safetensors")


@pytest.mark.parametrize("ranges", [([0, 8], [4, 12]), ([0, 4], [8, 12]), ([4, 12], [4, 12]), ([0, 12], [0, 12])])
def test_tensors_that_overlap_or_leave_gaps(tmp_path, ranges):
    entries = {
        str(i): {"dtype": "F32", "shape": [(b - a) // 4], "data_offsets": [a, b]} for i, (a, b) in enumerate(ranges)
    }
    header = json.dumps(entries).encode()
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 12)
    with pytest.raises(InputError, match="overlap, or gaps between them"):
        SafetensorsFile(tmp_path / "m.safetensors")


def test_a_header_longer_than_its_file_is_not_allocated(tmp_path):
    (tmp_path / "m.safetensors").write_bytes((90_000_000).to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match="not a complete safetensors file"):
        SafetensorsFile(tmp_path / "m.safetensors")
    deep = b"[" * 100_000 + b"]" * 100_000
    (tmp_path / "m.safetensors").write_bytes(len(deep).to_bytes(8, "little") + deep)
    with pytest.raises(InputError, match="damaged safetensors header"):
        SafetensorsFile(tmp_path / "m.safetensors")
