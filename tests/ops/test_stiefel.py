"""Points stay orthonormal, gradients are the metric's, and the optimizers step as geoopt's do."""

import jax
import numpy as np
import pytest
from scipy import linalg

from crate_jax.ops import stiefel


def _point_and_gradient(n, m, seed=0):
    rng = np.random.default_rng(seed)
    return np.linalg.qr(rng.normal(size=(n, m)))[0], rng.normal(size=(n, m))


def test_the_gradient_is_the_canonical_metrics(x64):
    X, G = _point_and_gradient(6, 3)
    U = np.asarray(stiefel.tangent(X, G))
    np.testing.assert_allclose(X.T @ U + U.T @ X, 0, atol=1e-14)
    V = np.asarray(stiefel.project_tangent(X, np.random.default_rng(1).normal(size=X.shape)))
    np.testing.assert_allclose(X.T @ V + V.T @ X, 0, atol=1e-14)
    # what a Riemannian gradient is: <U, V>_X is the derivative along every tangent V
    np.testing.assert_allclose(stiefel.inner(X, U, V), (G * V).sum(), rtol=1e-12)


@pytest.mark.parametrize("kind", ["cayley", "cayley_exact", "qr", "polar"])
def test_retractions_stay_on_the_manifold_and_agree_to_first_order(kind, x64):
    X, G = _point_and_gradient(7, 3)
    U = np.asarray(stiefel.tangent(X, G))
    retract = jax.jit(stiefel.retract, static_argnums=2)
    Y = np.asarray(retract(X, 0.7 * U, kind))
    np.testing.assert_allclose(Y.T @ Y, np.eye(3), atol=1e-13)
    h = 1e-6
    slope = (np.asarray(retract(X, h * U, kind)) - X) / h
    # geoopt's counts the part inside the span of X twice
    expected = U + X @ (X.T @ U) if kind == "cayley" else U
    np.testing.assert_allclose(slope, expected, atol=1e-4)


def test_an_unknown_retraction_is_named():
    with pytest.raises(ValueError, match="'cayley'.*got 'exp'"):
        stiefel.retract(np.eye(2), np.zeros((2, 2)), "exp")


@pytest.mark.parametrize("n, m", [(5, 4), (9, 2)], ids=["by_n", "by_2m"])
def test_the_transport_is_the_dense_cayley_transform(n, m, x64):
    X, U = _point_and_gradient(n, m)
    V = np.random.default_rng(2).normal(size=(n, 3))
    A = U @ X.T - X @ U.T
    dense = np.linalg.solve(np.eye(n) - A / 2, (np.eye(n) + A / 2) @ V)
    np.testing.assert_allclose(
        jax.jit(stiefel.cayley_transport)(X, U, V), dense, rtol=1e-10, atol=1e-12
    )


def test_the_polar_factor_is_the_nearest_point(x64):
    tall = np.random.default_rng(3).normal(size=(6, 4))
    np.testing.assert_allclose(stiefel.polar(tall), linalg.polar(tall)[0], atol=1e-12)
    np.testing.assert_allclose(stiefel.polar(tall.T), linalg.polar(tall.T)[0], atol=1e-12)
    near = linalg.polar(tall)[0] + 0.03 * tall
    np.testing.assert_allclose(stiefel.polar_newton(near), linalg.polar(near)[0], atol=1e-12)
    np.testing.assert_allclose(stiefel.polar_newton(near.T), linalg.polar(near.T)[0], atol=1e-12)


def _adam(X, G, m, v, t, rate):
    """A step of geoopt's RiemannianAdam, with matrices written out."""
    g = G - X @ G.T @ X
    m = 0.9 * m + 0.1 * g
    v = 0.999 * v + 0.001 * np.trace(g.T @ (np.eye(len(X)) - X @ X.T / 2) @ g)
    d = -rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    A = d @ X.T - X @ d.T
    eye = np.eye(len(X))
    move = np.linalg.solve(eye - A / 2, eye + A / 2)
    return move @ X, move @ m, v


def test_adam_and_sgd_step_as_geoopt_does(x64):
    X, _ = _point_and_gradient(5, 3)
    state, m, v, Y = stiefel.adam_init(X), np.zeros_like(X), 0.0, X
    step = jax.jit(stiefel.adam_step, static_argnums=3)
    for t in (1, 2, 3):
        G = np.random.default_rng(t).normal(size=X.shape)
        X, state = step(X, G, state, 0.1)
        Y, m, v = _adam(Y, G, m, v, t, 0.1)
    np.testing.assert_allclose(X, Y, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(state["m"], m, rtol=1e-10, atol=1e-12)
    G = np.random.default_rng(9).normal(size=Y.shape)
    U = -0.1 * (G - Y @ G.T @ Y)
    A = U @ Y.T - Y @ U.T
    moved = np.linalg.solve(np.eye(5) - A / 2, (np.eye(5) + A / 2) @ Y)
    np.testing.assert_allclose(jax.jit(stiefel.sgd_step)(Y, G, 0.1), moved, rtol=1e-10, atol=1e-12)


def test_random_points_are_orthonormal(x64):
    X = np.asarray(stiefel.random_point(jax.random.key(0), 5, 3, np.float64))
    assert X.dtype == np.float64
    np.testing.assert_allclose(X.T @ X, np.eye(3), atol=1e-14)
