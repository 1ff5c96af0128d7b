"""The objectives against float64 numpy, class by class with slogdet."""

import jax
import jax.numpy as jnp
import numpy as np

from crate_jax.objectives import closed_loop

EPS_SQ, K = 0.5, 4


def _rate(Z):
    n, d = Z.shape
    return 0.5 * np.linalg.slogdet(np.eye(d) + d / (n * EPS_SQ) * Z.T @ Z)[1]


def _reduction(Z, labels):
    parts = [(labels == k).mean() * _rate(Z[labels == k]) for k in set(labels.tolist())]
    return _rate(Z) - sum(parts)


def _distance(A, B):
    return _rate(np.concatenate([A, B])) - 0.5 * _rate(A) - 0.5 * _rate(B)


def _features(seed=0, n=12, d=5):
    rng = np.random.default_rng(seed)
    Z, Zhat = rng.normal(size=(2, n, d))
    unit = [M / np.linalg.norm(M, axis=1, keepdims=True) for M in (Z, Zhat)]
    return *unit, rng.integers(0, K - 1, n)  # the last class is absent


def test_binary_takes_the_two_sets_for_two_classes(x64):
    Z, Zhat, _ = _features()
    value, terms = closed_loop.binary(Z, Zhat, eps_sq=EPS_SQ)
    np.testing.assert_allclose(value, _distance(Z, Zhat), rtol=1e-12)
    np.testing.assert_allclose(terms["rate_hat"], _rate(Zhat), rtol=1e-12)
    assert abs(closed_loop.binary(Z, Z, eps_sq=EPS_SQ)[0]) < 1e-14


def test_multi_is_the_sum_of_its_terms_and_an_absent_class_is_none(x64):
    Z, Zhat, labels = _features()
    gammas = (0.7, 1.3, 2.0)
    value, terms = closed_loop.multi(Z, Zhat, labels, K, eps_sq=EPS_SQ, gammas=gammas)
    distance = sum(_distance(Z[labels == k], Zhat[labels == k]) for k in set(labels.tolist()))
    wanted = gammas[0] * _reduction(Z, labels) + gammas[1] * _reduction(Zhat, labels)
    np.testing.assert_allclose(value, wanted + gammas[2] * distance, rtol=1e-12)
    np.testing.assert_allclose(terms["reduction"], _reduction(Z, labels), rtol=1e-12)
    np.testing.assert_allclose(terms["distance"], distance, rtol=1e-12)
    gradient = jax.jit(jax.grad(lambda Z: closed_loop.multi(Z, Zhat, labels, K, eps_sq=EPS_SQ)[0]))
    assert np.all(np.isfinite(gradient(jnp.asarray(Z))))


def test_both_are_blind_to_rotations_and_to_the_order_of_samples(x64):
    Z, Zhat, labels = _features(1)
    Q = np.linalg.qr(np.random.default_rng(2).normal(size=(5, 5)))[0]
    order = np.random.default_rng(3).permutation(len(Z))
    for objective in (
        lambda A, B, y: closed_loop.binary(A, B, eps_sq=EPS_SQ)[0],
        lambda A, B, y: closed_loop.multi(A, B, y, K, eps_sq=EPS_SQ)[0],
    ):
        here = objective(Z, Zhat, labels)
        there = objective(Z[order] @ Q, Zhat[order] @ Q, labels[order])
        np.testing.assert_allclose(here, there, rtol=1e-12)


def test_consistency_is_a_mean_of_squares(x64):
    Z, Zhat, _ = _features()
    np.testing.assert_allclose(
        closed_loop.consistency(jnp.asarray(Z), jnp.asarray(Zhat)),
        2 - 2 * np.mean(np.sum(Z * Zhat, axis=1)), rtol=1e-12,
    )  # fmt: skip
