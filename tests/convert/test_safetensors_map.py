import json
import struct

import ml_dtypes
import numpy as np
import pytest

from crate_jax.config import ConfigError
from crate_jax.convert.safetensors_map import INDEX, SINGLE, TensorFiles

RNG = np.random.default_rng(0)
TENSORS = {
    "a": ("F32", RNG.normal(size=(6, 4)).astype(np.float32)),
    "b": ("BF16", RNG.normal(size=(5, 3)).astype(ml_dtypes.bfloat16)),
    "c": ("F16", RNG.normal(size=7).astype(np.float16)),
    "d": ("F64", RNG.normal(size=(2, 2, 2))),
}


def to_bytes(tensors):
    """A file as the format is written down: length of the header, header, raw bytes."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, (dtype, array) in tensors.items():
        raw = array.tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture
def single(tmp_path):
    (tmp_path / SINGLE).write_bytes(to_bytes(TENSORS))
    return tmp_path


@pytest.fixture
def sharded(tmp_path):
    parts = {"one.safetensors": ("a", "c"), "two.safetensors": ("b", "d")}
    for file, names in parts.items():
        (tmp_path / file).write_bytes(to_bytes({name: TENSORS[name] for name in names}))
    weight_map = {name: file for file, names in parts.items() for name in names}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tmp_path


@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_slices_are_the_arrays(request, layout):
    files = TensorFiles(request.getfixturevalue(layout))
    assert set(files) == set(TENSORS)
    for name, (dtype, array) in TENSORS.items():
        assert files[name].shape == array.shape and files[name].dtype == dtype
        whole = files.read(name)
        assert whole.dtype == array.dtype
        np.testing.assert_array_equal(whole, array)
    some = (slice(1, 4), slice(2, 3))
    for name in ("a", "b"):
        np.testing.assert_array_equal(files.read(name, some), TENSORS[name][1][some])
    np.testing.assert_array_equal(files.read("a", (slice(2, 4),)), TENSORS["a"][1][2:4])
    np.testing.assert_array_equal(files.read("a", (slice(None), slice(None))), TENSORS["a"][1])


def test_one_file_of_another_name(tmp_path):
    (tmp_path / "consolidated.safetensors").write_bytes(to_bytes(TENSORS))
    assert set(TensorFiles(tmp_path)) == set(TENSORS)


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_file_that_is_cut_short(single, keep):
    path = single / SINGLE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ConfigError, match=f"{SINGLE} cannot be read as safetensors.*cut short"):
        TensorFiles(single)


def test_a_shard_that_is_missing(sharded):
    (sharded / "two.safetensors").unlink()
    with pytest.raises(ConfigError, match=f"lacks two.safetensors, which {INDEX} names"):
        TensorFiles(sharded)


def test_an_index_that_names_what_no_file_holds(sharded):
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["e"] = "one.safetensors"
    (sharded / INDEX).write_text(json.dumps(index))
    with pytest.raises(ConfigError, match="lists e, which one.safetensors does not hold"):
        TensorFiles(sharded)


@pytest.mark.parametrize("text", ["{", "[]", '{"weights": {}}', '{"weight_map": 3}'])
def test_an_index_that_is_none(sharded, text):
    (sharded / INDEX).write_text(text)
    with pytest.raises(ConfigError, match="is no index of safetensors"):
        TensorFiles(sharded)


def test_directories_without_safetensors(tmp_path):
    with pytest.raises(ConfigError, match="there is no checkpoint directory"):
        TensorFiles(tmp_path / "nowhere")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match="holds neither.*it has pytorch_model.bin"):
        TensorFiles(tmp_path)


def test_a_quantised_tensor(tmp_path):
    quantised = {"q": ("I8", np.zeros((2, 2), np.int8))}
    (tmp_path / SINGLE).write_bytes(to_bytes(quantised))
    with pytest.raises(ConfigError, match="q of .* is stored as I8.*not quantised"):
        TensorFiles(tmp_path).read("q")
