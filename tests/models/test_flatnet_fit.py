"""The inner fit: gradient, least squares and loss by brute force, chunks, and planted patches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.models import flatnet_descent, flatnet_fit
from crate_jax.models.flatnet_fit import Points
from crate_jax.ops import stiefel


def points_of(X, chunks=1):
    N, D = X.shape
    n = -(-N // chunks)
    padded = np.zeros((chunks * n, D))
    padded[:N] = X
    valid = (np.arange(chunks * n) < N).astype(X.dtype).reshape(chunks, n)
    return Points(jnp.asarray(padded.reshape(chunks, n, D).transpose(0, 2, 1)), jnp.asarray(valid))


def cloud(rng, N=60, D=5, d=2, noise=0.0):
    """A quadratic graph over two coordinates, turned."""
    c = rng.uniform(-1, 1, (N, d))
    q = np.stack([c[:, 0] ** 2, c[:, 0] * c[:, 1], c[:, 1] ** 2], 1)
    X = np.concatenate([c, 0.5 * q @ rng.normal(size=(3, D - d))], 1)
    Q, _ = np.linalg.qr(rng.normal(size=(D, D)))
    return (X + noise * rng.normal(size=X.shape)) @ Q.T, Q[:, :d]


@pytest.fixture
def case(x64):
    rng = np.random.default_rng(0)
    X, _ = cloud(rng, noise=0.05)
    U = np.asarray(stiefel.random_point(jax.random.key(0), 5, 2, jnp.float64))
    return X, points_of(X), jnp.asarray(X[3]), jnp.asarray(U)


def brute_force(X, z_c, U, r):
    """V, loss, largest error and mean |c| from the definition, in numpy."""
    gamma = np.log(2) / r**2
    k = np.exp(-gamma * np.sum((X - z_c) ** 2, 1))
    mu = k @ X / k.sum()
    k = np.exp(-gamma * np.sum((X - mu) ** 2, 1))
    X, k = X[k > 1e-6], k[k > 1e-6][:, None]
    c = (X - z_c) @ U
    P = X - z_c - c @ U.T
    q = np.stack([c[:, 0] ** 2, c[:, 0] * c[:, 1], c[:, 1] ** 2], 1)
    V = np.linalg.lstsq(k * q, k * P, rcond=1e-4)[0].T
    R = k * (P - q @ V.T)
    return V, 0.5 * np.mean(R**2), np.linalg.norm(R, axis=1).max(), np.abs(c).mean(0)


@jax.jit
def look_at(points, z_c, U, r):
    """V, its measures, the gradient of U, and that gradient by differentiation."""
    kernel = flatnet_fit.kernel_about(points, z_c, r)
    C, w = points.Z - z_c[None, :, None], kernel.k**2
    V, _ = flatnet_fit.solve_patch(C, w, U)
    A = flatnet_fit.sum_chunks(lambda C, w: (C * w[None]) @ C.T, C, w)
    gradient = flatnet_fit.patch_gradient(C, w, A, U, kernel.count * 5)
    measure = flatnet_fit.measure_patch
    expected = jax.grad(lambda U: measure(points, kernel, z_c, U, V).loss)(U)
    return V, measure(points, kernel, z_c, U, V), gradient, expected


@pytest.mark.parametrize("r", [0.4, 1.5])
def test_v_loss_and_error_are_those_of_the_definition(case, r):
    X, points, z_c, U = case
    V, loss, error, spread = brute_force(X, np.asarray(z_c), np.asarray(U), r)
    ours, measures, _, _ = look_at(points, z_c, U, jnp.asarray(r))
    np.testing.assert_allclose(ours, V, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(ours.T @ U, 0, atol=1e-12)
    np.testing.assert_allclose(measures.loss, loss, rtol=1e-9)
    np.testing.assert_allclose(measures.error, error, rtol=1e-9)
    np.testing.assert_allclose(measures.spread, spread, rtol=1e-12)


@pytest.mark.parametrize("chunks", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_the_gradient_is_that_of_the_loss_with_v_held(case, chunks):
    X, points, z_c, U = case
    expected = look_at(points, z_c, U, jnp.asarray(0.8))[3]
    ours = look_at(points_of(X, chunks), z_c, U, jnp.asarray(0.8))[2]
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-13)


def test_small_singular_values_are_cut_off(x64):
    rng = np.random.default_rng(1)
    A = rng.normal(size=(30, 4)) * np.array([1, 1, 1e-6, 0])
    B = rng.normal(size=(30, 3))
    expected = np.linalg.lstsq(A, B, rcond=1e-4)[0]
    solve = jax.jit(flatnet_fit.least_squares)
    np.testing.assert_allclose(solve(A.T @ A, A.T @ B), expected, atol=1e-9)
    np.testing.assert_array_equal(solve(jnp.zeros((4, 4)), jnp.ones((4, 3))), 0)


@pytest.fixture(scope="module")
def fit():
    descent = flatnet_descent.riemannian_adam()
    return jax.jit(lambda *args: flatnet_fit.fit_patch(*args, descent))


@pytest.mark.slow
def test_it_finds_a_planted_patch(x64, fit):
    rng = np.random.default_rng(2)
    X, tangent = cloud(rng)
    X = np.concatenate([np.zeros((1, 5)), X])  # the anchor is where the graph touches its plane
    U = stiefel.random_point(jax.random.key(1), 5, 2, jnp.float64)
    patch = fit(points_of(X), jnp.zeros(5), U, jnp.asarray(1.0))
    np.testing.assert_allclose(patch.U @ patch.U.T, tangent @ tangent.T, atol=1e-3)
    np.testing.assert_allclose(patch.U.T @ patch.U, np.eye(2), atol=1e-12)
    assert patch.loss < 1e-7 and 20 < patch.steps < 400
    np.testing.assert_allclose(patch.V.T @ patch.U, 0, atol=1e-3)  # V is from before the last step


@pytest.mark.slow
def test_a_drawn_sample_estimates_the_same_patch(x64):
    rng = np.random.default_rng(3)
    X, _ = cloud(rng, N=400)
    U = stiefel.random_point(jax.random.key(1), 5, 2, jnp.float64)
    descent = flatnet_descent.riemannian_adam()
    args = (points_of(X), jnp.asarray(X[0]), U, jnp.asarray(0.7), descent)
    whole = flatnet_fit.fit_patch(*args)
    part = flatnet_fit.fit_patch(*args, sample=jnp.asarray(rng.random(200)))
    assert part.loss < 3 * whole.loss
    np.testing.assert_allclose(part.mass, whole.mass, rtol=1e-12)


@pytest.mark.slow
def test_the_frame_is_a_good_start(x64):
    rng = np.random.default_rng(4)
    X, tangent = cloud(rng, N=200)
    X = np.concatenate([np.zeros((1, 5)), X])
    args = (points_of(X), jnp.zeros(5), jnp.asarray(0.3), 2)
    pca, frame = (
        np.abs(U @ U.T - tangent @ tangent.T).max()
        for U in (flatnet_fit.local_frame(*args, refits=n) for n in (0, 3))
    )
    assert frame < 0.3 * pca and frame < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("retraction", flatnet_descent.RETRACTIONS)
def test_every_retraction_stays_orthonormal_and_goes_down(case, retraction):
    _, points, z_c, U = case
    descent = flatnet_descent.riemannian_adam(0.1, retraction=retraction)
    args = (points, z_c, U, jnp.asarray(1.0), descent)
    first, later = (flatnet_fit.fit_patch(*args, max_steps=n) for n in (1, 40))
    np.testing.assert_allclose(later.U.T @ later.U, np.eye(2), atol=1e-10)
    assert later.loss < first.loss
