import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from crate_jax import models
from crate_jax.config import ConfigError
from crate_jax.layers.positions import resample
from crate_jax.models.adapt import adapt


def _params(side=16, **overrides):
    settings = {"width": 16, "depth": 2, "heads": 2, "patch": 4, "num_classes": 3} | overrides
    model = models.create("crate_alpha", **settings)
    return model.init(jax.random.key(0), jnp.zeros((1, side, side, 3)))["params"]


def test_the_same_network_takes_everything_over():
    params = _params()
    flat = traverse_util.flatten_dict(params)
    got = adapt(params, params)
    assert set(got) == set(flat)
    for path, value in got.items():
        np.testing.assert_array_equal(value, flat[path])


def test_scanned_and_unrolled_layers_are_taken_for_each_other():
    unrolled, scanned = _params(), _params(scan_layers=True)
    got = adapt(unrolled, scanned)
    D = got["blocks", "ista", "D"]
    np.testing.assert_array_equal(D[1], unrolled["blocks_1"]["ista"]["D"])
    assert ("blocks_1", "ista", "D") in adapt(scanned, unrolled)


def test_a_finer_patch_resizes_kernel_and_positions():
    coarse, fine = _params(patch=8, side=16), _params(patch=4, side=16)
    coarse["patches"]["embed"]["kernel"] = jnp.ones_like(coarse["patches"]["embed"]["kernel"])
    got = adapt(coarse, fine, skip=("head",))
    kernel = got["patches", "embed", "kernel"]
    assert kernel.shape == (4, 4, 3, 16)
    np.testing.assert_allclose(kernel, 1.0, rtol=1e-6)  # bilinear weights sum to one
    table = coarse["embedding"]["pos_embedding"]
    np.testing.assert_array_equal(
        got["embedding", "pos_embedding"], resample(table, (4, 4), method="linear")
    )
    assert ("head", "kernel") not in got


def test_what_does_not_fit_is_listed_leaf_by_leaf():
    with pytest.raises(ConfigError, match=r"head/kernel: \(16, 3\) in the checkpoint, \(16, 7\)"):
        adapt(_params(), _params(num_classes=7))
    with pytest.raises(ConfigError, match="blocks_2/ista/D: missing"):
        adapt(_params(), _params(depth=3))
    with pytest.raises(ConfigError, match="blocks_1/ista/D1: unexpected"):
        adapt(_params(), _params(decoupled=False))
