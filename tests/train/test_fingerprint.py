"""The formula in numpy, any one change found, and the mesh without a say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from crate_jax.config import MeshConfig
from crate_jax.sharding.mesh import create_mesh
from crate_jax.train.fingerprint import differing, fingerprints, weighted_sum

DTYPES = ("float32", "bfloat16", "int32", "uint8", "bool")


def _draw(shape, dtype, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(jnp.dtype(dtype))


def _by_hand(x):
    words = np.ascontiguousarray(x).view(f"u{x.dtype.itemsize}").ravel()
    return sum((2 * i + 1) * int(word) for i, word in enumerate(words)) % 2**32


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4)])
def test_it_is_the_sum_of_the_words_by_their_places(shape, dtype):
    x = _draw(shape, dtype)
    assert int(weighted_sum(x)) == _by_hand(x)


def test_it_counts_the_words_of_float64(x64):
    x = _draw((3, 5), "float64")
    words = x.view("u4").ravel()
    assert int(weighted_sum(x)) == sum((2 * i + 1) * int(w) for i, w in enumerate(words)) % 2**32


@pytest.mark.parametrize("dtype", DTYPES[:-1])
def test_any_flipped_bit_is_found(dtype):
    x = _draw((3, 4), dtype)
    before, bits = int(weighted_sum(x)), 8 * x.dtype.itemsize
    flipped = set()
    for i in range(x.size):
        for b in range(bits):
            y = x.copy()
            y.view(f"u{x.dtype.itemsize}").ravel()[i] ^= np.array(2**b, f"u{x.dtype.itemsize}")
            flipped.add(int(weighted_sum(y)) != before)
    assert flipped == {True}


def test_rows_that_change_places_are_found():
    x = _draw((4, 4), "float32")
    assert int(weighted_sum(x)) != int(weighted_sum(x[[1, 0, 2, 3]]))


@pytest.mark.parametrize("spec", [("fsdp", None), (None, "tensor"), ("fsdp", "tensor"), ()])
def test_the_mesh_has_no_say(spec):
    x = {"a": {"w": _draw((8, 6), "float32")}, "b": (_draw((4,), "bfloat16"),)}
    mesh = create_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    split = {**x, "a": {"w": jax.device_put(x["a"]["w"], sharding)}}
    assert fingerprints(split) == fingerprints(x)
    assert set(fingerprints(x)) == {"a/w", "b/0"}


def test_what_differs_is_named():
    x = {"a": np.arange(3.0, dtype=np.float32), "b": np.int32(4)}
    saved = fingerprints(x)
    assert differing(x, saved) == []
    assert differing({**x, "b": np.int32(5)}, saved) == ["b"]
    assert differing(x, {"a": saved["a"]}) == ["b"]
