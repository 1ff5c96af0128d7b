"""A layer against float64 numpy, its inverse, and the decoder's root on a grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.models.flatnet import Layer
from crate_jax.ops.flattening import (
    exact_inverse,
    flatten,
    flatten_raw,
    kernel_root,
    products,
    reconstruct,
)


def make_layer(rng, D, d, alpha=0.5, r=0.8):
    U, _ = np.linalg.qr(rng.normal(size=(D, d)))
    V = rng.normal(size=(D, d * (d + 1) // 2))
    V -= U @ (U.T @ V)
    mu, x_c, m = (0.2 * rng.normal(size=D) for _ in range(3))
    return Layer(U, V, mu, x_c, np.float64(np.log(2) / r**2), np.float64(alpha), m, np.float64(0.7))


@pytest.fixture
def case(x64):
    rng = np.random.default_rng(0)
    return make_layer(rng, 5, 2), rng.normal(size=(20, 5))


def test_products_are_the_upper_triangle_row_by_row():
    c = np.arange(1.0, 4.0)
    np.testing.assert_array_equal(products(jnp.asarray(c)), [1, 2, 3, 4, 6, 9])
    np.testing.assert_array_equal(
        products(jnp.asarray(c)[:, None], axis=0)[:, 0], [1, 2, 3, 4, 6, 9]
    )


def test_the_encoder_is_its_formula(case):
    layer, x = case
    c = x - layer.mu
    n = c - c @ layer.U @ layer.U.T
    k = layer.alpha * np.exp(-layer.gamma * np.sum(c**2, 1, keepdims=True))
    np.testing.assert_allclose(flatten(x, layer), (x - k * n - layer.m) / layer.s, rtol=1e-12)


@pytest.mark.slow
def test_the_decoder_is_its_formula_with_the_root_found_by_bisection(case):
    layer, x = case
    z = np.asarray(flatten(x, layer))
    y = layer.s * z + layer.m
    t = (y - layer.mu) @ layer.U
    nu = np.sum(((y - layer.mu) - t @ layer.U.T) ** 2, 1)
    a = layer.alpha * np.exp(-layer.gamma * np.sum(t**2, 1))
    low, high = nu.copy(), nu / (1 - a) ** 2
    for _ in range(200):
        rho = (low + high) / 2
        above = (1 - a * np.exp(-layer.gamma * rho)) ** 2 * rho > nu
        low, high = np.where(above, low, rho), np.where(above, rho, high)
    k = (a * np.exp(-layer.gamma * rho))[:, None]
    offset = layer.x_c - layer.mu
    offset = offset - layer.U @ (layer.U.T @ offset)
    c = (y - layer.x_c) @ layer.U
    q = np.stack([c[:, 0] ** 2, c[:, 0] * c[:, 1], c[:, 1] ** 2], 1)
    np.testing.assert_allclose(reconstruct(z, layer), y + k * (offset + q @ layer.V.T), rtol=1e-10)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.9])
def test_the_exact_inverse_inverts(x64, alpha):
    rng = np.random.default_rng(1)
    layer, x = make_layer(rng, 6, 3, alpha), rng.normal(size=(50, 6))
    np.testing.assert_allclose(exact_inverse(flatten(x, layer), layer), x, atol=1e-9)


@pytest.mark.slow
def test_a_quadratic_patch_is_rebuilt_from_what_the_encoder_leaves(x64):
    rng = np.random.default_rng(2)
    layer = make_layer(rng, 6, 2)
    c = 0.3 * rng.normal(size=(40, 2))
    x = layer.x_c + c @ layer.U.T + np.asarray(products(jnp.asarray(c))) @ layer.V.T
    np.testing.assert_allclose(reconstruct(flatten(x, layer), layer), x, atol=1e-9)


def test_the_root_on_a_grid(x64):
    rho = np.array([0.0, 1e-12, 1e-8, 1e-4, 1e-2, 0.3, 1.0, 10.0])[:, None, None]
    a, gamma = np.array([0.0, 0.1, 0.5, 0.9])[None, :, None], np.array([0.1, 2.0, 50.0])[None, None]
    nu = (1 - a * np.exp(-gamma * rho)) ** 2 * rho
    found = kernel_root(*map(jnp.asarray, np.broadcast_arrays(nu, a, gamma)))
    kernel = a * np.exp(-gamma * np.asarray(found))
    np.testing.assert_allclose(kernel, a * np.exp(-gamma * rho), atol=1e-9)
    np.testing.assert_array_equal(found[0], 0)


def test_the_derivative_of_the_root_is_the_difference_quotient(x64):
    at = (jnp.asarray(0.2), jnp.asarray(0.6), jnp.asarray(1.3))
    root, slopes = jax.jit(kernel_root), jax.jit(jax.grad(kernel_root, argnums=(0, 1, 2)))
    for i, slope in enumerate(slopes(*at)):
        up, down = ([*at[:i], at[i] + e, *at[i + 1 :]] for e in (1e-5, -1e-5))
        np.testing.assert_allclose(slope, (root(*up) - root(*down)) / 2e-5, rtol=1e-7)
    assert np.isfinite(slopes(jnp.asarray(0.0), *at[1:])).all()


@pytest.mark.slow
def test_a_layer_is_bi_lipschitz(case):
    """det J > 0 and |J| <= 1 + .446 a + .368 a, |J^-1| <= (1 + .368 a) / (1 - a)."""
    layer, x = case
    a = float(layer.alpha)
    J = jax.vmap(jax.jacobian(lambda x: flatten_raw(x[None], layer)[0]))(jnp.asarray(x))
    s = np.linalg.svd(J, compute_uv=False)
    assert (np.linalg.det(J) > 0).all()
    assert s.max() <= 1 + 0.446 * a + 0.368 * a
    assert 1 / s.min() <= (1 + 0.368 * a) / (1 - a)
