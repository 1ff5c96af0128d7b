"""Files are there whole, or as they were before."""

import numpy as np
import pytest

from crate_jax.train import whole

ARRAYS = {"a/b": np.arange(300.0).reshape(3, 100), "names": np.array(["x", "yz"])}


def test_texts_and_arrays_come_back(tmp_path):
    whole.write_text(tmp_path / "a.json", "one\n")
    assert (tmp_path / "a.json").read_text() == "one\n"
    whole.write_npz(tmp_path / "a.npz", ARRAYS)
    back = whole.read_npz(tmp_path / "a.npz")
    assert list(back) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(back[name], array)
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", "a.npz"}


def test_a_write_that_fails_leaves_the_earlier_file(tmp_path):
    class Fails:
        def __array__(self, *_, **__):
            raise KeyboardInterrupt

    path = tmp_path / "a.npz"
    whole.write_npz(path, ARRAYS)
    with pytest.raises(KeyboardInterrupt):
        whole.write_npz(path, {"first": np.zeros(9), "second": Fails()})
    assert list(whole.read_npz(path)) == list(ARRAYS)


def test_an_npz_that_is_missing_cut_off_or_spoiled_is_none(tmp_path):
    path = tmp_path / "a.npz"
    assert whole.read_npz(path) is None
    whole.write_npz(path, ARRAYS)
    data = path.read_bytes()
    for length in (0, 30, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        assert whole.read_npz(path) is None
    for start in range(0, len(data) - 64, 16):  # any stretch: headers, data, the directory
        path.write_bytes(data[:start] + b"\xff" * 64 + data[start + 64 :])
        assert whole.read_npz(path) is None
