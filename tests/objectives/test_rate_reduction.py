"""The losses against their formula in numpy."""

import jax
import numpy as np
import pytest

from crate_jax.objectives import rate_reduction as rr


def _logdet(Z, a):
    return np.linalg.slogdet(np.eye(Z.shape[1]) + a * Z.T @ Z)[1]


@pytest.mark.parametrize(
    "settings", [{}, {"gamma1": 20.0, "gamma2": 0.05}, {"lmbda": 0.3}], ids=["plain", "self", "reg"]
)
def test_the_loss_is_its_formula(x64, settings):
    rng = np.random.default_rng(0)
    N, d, K, eps_sq = 12, 5, 3, 0.4
    Z, labels = rng.normal(size=(N, d)), np.arange(N) % K
    g1, g2, lmbda = (settings.get(k, v) for k, v in (("gamma1", 1), ("gamma2", 1), ("lmbda", 0)))
    a = d / (N * eps_sq)
    rate = 0.5 * _logdet(Z, a)
    classes = sum(
        (len(P) / (2 * N)) * _logdet(P, d / (len(P) * eps_sq))
        for P in (Z[labels == k] for k in range(K))
    )
    want = classes - g2 / 2 * _logdet(Z, g1 * a) + lmbda / 2 * np.sum(Z**2)
    loss, rates = rr.rate_reduction_loss(Z, labels, K, eps_sq=eps_sq, **settings)
    np.testing.assert_allclose(loss, want, rtol=1e-12)
    np.testing.assert_allclose(rates["rate"], rate, rtol=1e-12)
    np.testing.assert_allclose(rates["class_rate"], classes, rtol=1e-12)
    np.testing.assert_allclose(rates["rate_reduction"], rate - classes, rtol=1e-12)


def test_masked_rates_are_those_of_the_rest(x64):
    rng = np.random.default_rng(1)
    Z, labels = rng.normal(size=(10, 4)), np.array([0, 1, 2, 0, 1, 2, 0, 1, 1, 1])
    mask = np.array([1, 1, 1, 1, 1, 1, 0, 1, 0, 0.0])
    rates = jax.jit(lambda Z, mask: rr.masked_rates(Z, labels, mask, 3, eps_sq=0.5))
    got, count = rates(Z, mask)
    kept = mask > 0
    _, want = rr.rate_reduction_loss(Z[kept], labels[kept], 3, eps_sq=0.5)
    assert count == 7
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-12)
    nothing, count = rates(Z, 0 * mask)
    assert count == 0 and all(value == 0 for value in nothing.values())


def test_classes_of_views_and_soft_memberships(x64):
    np.testing.assert_array_equal(rr.view_classes(6, 3), [0, 0, 0, 1, 1, 1])
    soft = rr.soft_memberships(np.array([2, 0]), 4, 0.2)
    np.testing.assert_allclose(soft, [[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]])
