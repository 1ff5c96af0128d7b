import builtins

import ml_dtypes
import numpy as np
import pytest

from crate_jax.config import ConfigError
from crate_jax.convert import files

ARRAYS = {
    "a": np.arange(6.0).reshape(2, 3),
    "b/c": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "d.e": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "f": np.array([1, 2], np.float16),
}


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_arrays_come_back_bit_for_bit(tmp_path, suffix):
    path = tmp_path / "new" / f"x{suffix}"
    files.write(path, ARRAYS)
    got = files.read(path)
    assert set(got) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth", ".tar"])
@pytest.mark.parametrize("keep", [0, 3, 100])
def test_a_file_that_is_cut_short(tmp_path, suffix, keep):
    whole = tmp_path / ("x.npz" if suffix != ".safetensors" else "x.safetensors")
    files.write(whole, ARRAYS)
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole.read_bytes()[:keep])
    with pytest.raises(ConfigError, match=f"cannot be read as {suffix}"):
        files.read(path)


def test_an_npz_is_never_unpickled(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, a=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ConfigError, match="cannot be read"):
        files.read(path)


def test_paths_that_are_wrong(tmp_path):
    with pytest.raises(ConfigError, match="there is no file"):
        files.read(tmp_path / "x.npz")
    with pytest.raises(ConfigError, match="suffix '.npy'; did you mean '.npz'"):
        files.read(tmp_path / "x.npy")
    with pytest.raises(ConfigError, match="suffix '.h5'.*Valid: .npz, .pth, .safetensors"):
        files.write(tmp_path / "x.h5", ARRAYS)
    files.write(tmp_path / "x.npz", {})
    with pytest.raises(ConfigError, match="holds no arrays"):
        files.read(tmp_path / "x.npz")


def test_pth_needs_torch_to_be_written(tmp_path, monkeypatch):
    real = builtins.__import__

    def without_torch(name, *args, **kwargs):
        if name == "torch":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    with pytest.raises(ConfigError, match=r"pip install 'crate_jax\[torch\]'"):
        files.write(tmp_path / "x.pth", ARRAYS)
    assert not list(tmp_path.iterdir())


def test_pth_goes_through_torch(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "x.pth"
    files.write(path, ARRAYS)
    tensors = torch.load(path, weights_only=True)
    assert tensors["d.e"].dtype == torch.bfloat16 and tensors["b/c"].shape == (3, 2)
    got = files.read(path)
    for name, array in ARRAYS.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)
