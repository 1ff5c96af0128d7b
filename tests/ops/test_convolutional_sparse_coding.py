"""Sparse coding by a convolution against the same by one dense matrix, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.ops import convolutional_sparse_coding as csc

GEOMETRIES = [(6, 4, 2, 1), (7, 3, 2, 1), (5, 4, 2, 1), (4, 4, 1, 0)]
"""Side, kernel, stride, padding; the released layer takes the second kind alone, of even sides."""


def _incidence(side, kernel, stride, padding):
    """1 where pixel q is under entry k of an atom at place p, ``(P, Q, kernel^2)``."""
    places = (side + 2 * padding - kernel) // stride + 1
    out = np.zeros((places, places, side, side, kernel, kernel))
    for i, j, a, b in np.ndindex(places, places, kernel, kernel):
        row, column = i * stride + a - padding, j * stride + b - padding
        if 0 <= row < side and 0 <= column < side:
            out[i, j, row, column, a, b] = 1
    return out.reshape(places**2, side**2, kernel**2)


def _matrix(w, geometry):
    """``A*`` as a matrix, codes against pixels."""
    T = _incidence(*geometry)
    k, _, C, M = w.shape
    dense = jnp.einsum("pqk,kcm->pmqc", T, w.reshape(k * k, C, M))
    return dense.reshape(T.shape[0] * M, T.shape[1] * C)


def _reference(x, w, geometry, *, eta, lmbda, mu, steps, non_negative, squared, gradient_at):
    """The recursion of the released layer, written from its description, by the matrix."""
    K, x = _matrix(w, geometry), x.reshape(len(x), -1)

    def prox(v):
        v = v / (1 + mu * eta)
        v = jnp.sign(v) * jnp.maximum(jnp.abs(v) - lmbda * eta / (1 + mu * eta), 0)
        return jnp.maximum(v, 0) if non_negative else v

    def move(z):
        r = x - z @ K
        if not squared:
            r = r / jax.lax.stop_gradient(jnp.linalg.norm(r, axis=1, keepdims=True)) / 2
        return eta * r @ K.T

    codes, t = [jnp.zeros((len(x), len(K))), prox(eta * x @ K.T)], None
    for step in range(2, steps + 1):
        before, z = codes[-2:]
        if step == 2:
            t, a = (1 + np.sqrt(5)) / 2, z
        else:
            t, old = (1 + np.sqrt(1 + 4 * t**2)) / 2, t
            a = (old + t - 1) / t * z + (1 - old) / t * before
        codes.append(prox(a + move(z if gradient_at == "code" else a)))
    return codes[-1]


def _data(geometry, seed=0, C=2, M=3):
    side, kernel = geometry[:2]
    rng = np.random.default_rng(seed)
    w = csc.unit_atoms(jnp.asarray(rng.normal(size=(kernel, kernel, C, M))))
    return jnp.asarray(rng.normal(size=(2, side, side, C))), w


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_synthesis_is_the_adjoint_of_analysis(x64, geometry):
    x, w = _data(geometry)
    side, _, stride, padding = geometry
    z = jnp.asarray(np.random.default_rng(1).normal(size=(2, _places(geometry) ** 2 * 3)))
    K = _matrix(w, geometry)
    z_BHWM = z.reshape(2, _places(geometry), _places(geometry), 3)
    made = csc.synthesise(z_BHWM, w, side=(side, side), stride=stride, padding=padding)
    np.testing.assert_allclose(made.reshape(2, -1), z @ K, atol=1e-13)
    seen = csc.analyse(x, w, stride=stride, padding=padding)
    np.testing.assert_allclose(jnp.vdot(seen, z_BHWM), jnp.vdot(x, made), rtol=1e-12)


def _places(geometry):
    side, kernel, stride, padding = geometry
    return csc.code_side(side, kernel, stride=stride, padding=padding)


VARIANTS = {
    "one step": {"steps": 1},
    "two steps": {},
    "three steps": {"steps": 3},
    "five steps": {"steps": 5},
    "textbook": {"steps": 4, "gradient_at": "momentum"},
    "signed": {"steps": 3, "non_negative": False},
    "elastic net": {"steps": 3, "mu": 0.7},
    "unsquared": {"steps": 3, "squared": False},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_codes_and_their_gradients_are_those_of_the_matrix(x64, variant):
    geometry = GEOMETRIES[0] if variant != "three steps" else GEOMETRIES[2]
    settings = {"eta": 0.3, "lmbda": 0.2, "mu": 0.0, "steps": 2, "non_negative": True,
                "squared": True, "gradient_at": "code"} | VARIANTS[variant]  # fmt: skip
    x, w = _data(geometry)
    _, _, stride, padding = geometry

    def ours(x, w):
        z = csc.fista(x, w, stride=stride, padding=padding, **settings)
        return z.reshape(2, -1)

    weights = jnp.asarray(np.random.default_rng(2).normal(size=(2, _places(geometry) ** 2 * 3)))
    both = []
    for function in (ours, lambda x, w: _reference(x, w, geometry, **settings)):

        def weighted(x, w, function=function):
            z = function(x, w)
            return jnp.sum(weights * z), z

        slopes, z = jax.jit(jax.grad(weighted, argnums=(0, 1), has_aux=True))(x, w)
        both.append((z, *slopes))
    assert 0 < np.mean(np.asarray(both[0][0]) != 0) < 1
    for a, b in zip(*both, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


def test_many_steps_solve_the_lasso(x64):
    geometry = GEOMETRIES[0]
    x, w = _data(geometry)
    K = np.asarray(_matrix(w, geometry))
    eta = 0.9 / np.linalg.norm(K, 2) ** 2
    for gradient_at in csc.GRADIENTS_AT:
        z = csc.fista(
            x, w, eta=eta, lmbda=0.2, steps=3000, stride=2, padding=1, gradient_at=gradient_at
        )
        z = np.asarray(z).reshape(2, -1)
        slope = (z @ K - np.asarray(x).reshape(2, -1)) @ K.T + 0.2
        assert np.abs(slope[z > 0]).max() < 1e-4 and slope[z == 0].min() > -1e-4


@pytest.mark.parametrize("geometry", GEOMETRIES[:3], ids=str)
def test_power_iteration_finds_the_largest_eigenvalue_from_below(x64, geometry):
    side, _, stride, padding = geometry
    _, w = _data(geometry)
    exact = np.linalg.norm(np.asarray(_matrix(w, geometry)), 2) ** 2
    v = jnp.asarray(
        np.random.default_rng(3).normal(size=(1, _places(geometry), _places(geometry), 3))
    )
    options = {"side": (side, side), "stride": stride, "padding": padding}
    L, vector = csc.power_iteration(w, v, **options)
    assert 0.9 * exact < L <= exact * (1 + 1e-12)
    L, _ = csc.power_iteration(w, vector, iterations=3000, tolerance=0.0, **options)
    np.testing.assert_allclose(L, exact, rtol=1e-10)
    assert not np.any(jax.grad(lambda w: csc.power_iteration(w, v, **options)[0])(w))


def test_atoms_have_unit_norm_and_a_zero_atom_stays(x64):
    w = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 2, 4))).at[..., 0].set(0)
    norms = np.linalg.norm(np.asarray(csc.unit_atoms(w)).reshape(-1, 4), axis=0)
    np.testing.assert_allclose(norms, [0, 1, 1, 1], atol=1e-14)


def test_energies_are_the_two_terms(x64):
    x, w = _data(GEOMETRIES[0])
    z = csc.fista(x, w, eta=0.3, lmbda=0.2, mu=0.5, stride=2, padding=1)
    fit, penalty = csc.energies(x, z, w, lmbda=0.2, mu=0.5, stride=2, padding=1)
    flat = np.asarray(z).reshape(2, -1)
    r = np.asarray(x).reshape(2, -1) - flat @ np.asarray(_matrix(w, GEOMETRIES[0]))
    np.testing.assert_allclose(fit, (r**2).sum(1), rtol=1e-12)
    np.testing.assert_allclose(
        penalty, 0.2 * np.abs(flat).sum(1) + 0.25 * (flat**2).sum(1), rtol=1e-12
    )
