"""Unit rows against torch's definition, and a row that has no direction."""

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax.ops.sphere import unit


def test_rows_are_divided_by_their_length(x64):
    Z = np.random.default_rng(0).normal(size=(3, 4, 5))
    Z[0, 0], Z[1, 1] = 0.0, 2e-13 * np.eye(5)[2]
    want = Z / np.maximum(np.linalg.norm(Z, axis=-1, keepdims=True), 1e-12)
    np.testing.assert_allclose(unit(Z), want, rtol=1e-12)
    assert unit(Z.astype("float16")).dtype == "float32"


def test_a_row_without_a_direction_has_no_gradient(x64):
    rng = np.random.default_rng(1)
    Z, W = rng.normal(size=(2, 3, 4))
    Z[1] = 0.0
    got = jax.jit(jax.grad(lambda Z: jnp.sum(W * unit(Z))))(Z)
    z, w = Z[[0, 2]], W[[0, 2]]
    n = np.linalg.norm(z, axis=1, keepdims=True)
    want = w / n - z * np.sum(z * w, axis=1, keepdims=True) / n**3
    np.testing.assert_allclose(got[jnp.array([0, 2])], want, rtol=1e-12)
    np.testing.assert_array_equal(got[1], 0.0)
