import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.ops import coding_rate as cr


def np_rate(Z, eps_sq):
    N, d = Z.shape
    return 0.5 * np.linalg.slogdet(np.eye(d) + d / (N * eps_sq) * Z.T @ Z)[1]


def np_class_rate(Z, Pi, eps_sq):
    N, d = Z.shape
    total = 0.0
    for pi in Pi.T:
        n = pi.sum()
        if n > 0:
            gram = Z.T @ np.diag(pi) @ Z
            total += n / (2 * N) * np.linalg.slogdet(np.eye(d) + d / (n * eps_sq) * gram)[1]
    return total


def np_subspace_rate(Z, U, eps_sq):
    N, p = Z.shape[0], U.shape[-1]
    return 0.5 * sum(
        np.linalg.slogdet(np.eye(p) + p / (N * eps_sq) * (Z @ u).T @ (Z @ u))[1] for u in U
    )


@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (9, 9)])
def test_rates_match_numpy(x64, shape):
    rng = np.random.default_rng(0)
    Z = rng.normal(size=shape)
    labels = rng.integers(0, 3, shape[0])
    soft = rng.dirichlet(np.ones(4), shape[0])
    U = rng.normal(size=(3, shape[1], 5))
    hard = np.eye(3)[labels]
    np.testing.assert_allclose(cr.coding_rate(Z, eps_sq=0.5), np_rate(Z, 0.5), rtol=1e-12)
    np.testing.assert_allclose(
        cr.class_coding_rate(Z, labels, 3, eps_sq=0.5), np_class_rate(Z, hard, 0.5), rtol=1e-12
    )
    np.testing.assert_allclose(
        cr.class_coding_rate(Z, soft, 4, eps_sq=0.5), np_class_rate(Z, soft, 0.5), rtol=1e-12
    )
    np.testing.assert_allclose(
        cr.subspace_coding_rate(Z, U, eps_sq=0.5), np_subspace_rate(Z, U, 0.5), rtol=1e-12
    )
    np.testing.assert_allclose(
        cr.rate_reduction(Z, labels, 3, eps_sq=0.5),
        np_rate(Z, 0.5) - np_class_rate(Z, hard, 0.5),
        rtol=1e-12,
    )
    for norm, size in (("l1", np.abs(Z).sum()), ("l0", Z.size)):
        np.testing.assert_allclose(
            cr.sparse_rate_reduction(Z, U, eps_sq=0.5, lmbda=0.3, norm=norm),
            np_rate(Z, 0.5) - np_subspace_rate(Z, U, 0.5) - 0.3 * size,
            rtol=1e-12,
        )


@pytest.mark.parametrize("shape", [(30, 6), (6, 30)])
def test_gradients_match_closed_forms(x64, shape):
    rng = np.random.default_rng(1)
    Z, (N, d), eps_sq = rng.normal(size=shape), shape, 0.7
    alpha = d / (N * eps_sq)
    got = jax.grad(lambda z: cr.coding_rate(z, eps_sq=eps_sq))(Z)
    want = alpha * Z @ np.linalg.inv(np.eye(d) + alpha * Z.T @ Z)
    np.testing.assert_allclose(got, want, rtol=1e-10)

    labels = np.arange(N) % 3
    got = jax.grad(lambda z: cr.class_coding_rate(z, labels, 3, eps_sq=eps_sq))(Z)
    for k in range(3):
        Zk = Z[labels == k]
        inverse = np.linalg.inv(np.eye(d) + d / (len(Zk) * eps_sq) * Zk.T @ Zk)
        np.testing.assert_allclose(got[labels == k], alpha * Zk @ inverse, rtol=1e-10)

    U = rng.normal(size=(2, d, 4))
    a = 4 / (N * eps_sq)
    got = jax.grad(lambda z: cr.subspace_coding_rate(z, U, eps_sq=eps_sq))(Z)
    want = sum(a * Z @ u @ np.linalg.inv(np.eye(4) + a * (Z @ u).T @ (Z @ u)) @ u.T for u in U)
    np.testing.assert_allclose(got, want, rtol=1e-10)


def test_second_derivative_matches_finite_differences(x64):
    Z, V = np.random.default_rng(2).normal(size=(2, 12, 4))
    grad = jax.grad(lambda z: cr.coding_rate(z, eps_sq=0.5))
    got = jax.jvp(grad, (Z,), (V,))[1]
    h = 1e-5
    np.testing.assert_allclose(got, (grad(Z + h * V) - grad(Z - h * V)) / (2 * h), atol=1e-8)


def test_invariances(x64):
    rng = np.random.default_rng(3)
    Z = rng.normal(size=(20, 5))
    Q = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    order = rng.permutation(20)
    labels = np.arange(20) % 4
    value = cr.rate_reduction(Z, labels, 4, eps_sq=0.2)
    np.testing.assert_allclose(cr.rate_reduction(Z @ Q, labels, 4, eps_sq=0.2), value, rtol=1e-12)
    np.testing.assert_allclose(
        cr.rate_reduction(Z[order], labels[order], 4, eps_sq=0.2), value, rtol=1e-12
    )


def test_batched_and_empty_class_and_bfloat16():
    rng = np.random.default_rng(4)
    Z = jnp.asarray(rng.normal(size=(3, 16, 8)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 2, (3, 16)))
    batched = cr.class_coding_rate(Z, labels, 5, eps_sq=0.5)
    single = [cr.class_coding_rate(z, l, 5, eps_sq=0.5) for z, l in zip(Z, labels, strict=True)]
    np.testing.assert_allclose(batched, np.stack(single), rtol=1e-5)
    grad = jax.grad(lambda z: cr.class_coding_rate(z, labels, 5, eps_sq=0.5).sum())(Z)
    assert np.isfinite(grad).all()
    low = cr.coding_rate(Z.astype(jnp.bfloat16), eps_sq=0.5)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, cr.coding_rate(Z, eps_sq=0.5), rtol=2e-2)


def test_official_protocol_and_its_bound(x64):
    rng = np.random.default_rng(5)
    W = rng.normal(size=(2, 3, 10, 4))
    W[0, 0, 0] = 0.0  # the released code returns nan here
    got = cr.token_coding_rate(W)
    norms = np.linalg.norm(W, axis=-1, keepdims=True)
    unit = W / np.where(norms > 0, norms, 1)
    want = [
        0.5 * sum(np.linalg.slogdet(np.eye(10) + 4 / (10 * 0.01) * w @ w.T)[1] for w in image)
        for image in unit
    ]
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert np.isfinite(jax.grad(lambda w: cr.token_coding_rate(w).sum())(W)).all()
    assert (np.asarray(got) <= 3 * 4 / 2 * np.log(101)).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda Z: cr.class_coding_rate(Z, jnp.zeros(3, int), 2, eps_sq=1.0),
        lambda Z: cr.subspace_coding_rate(Z, jnp.zeros((2, 3, 1)), eps_sq=1.0),
        lambda Z: cr.sparse_rate_reduction(Z, jnp.zeros((2, 2, 1)), eps_sq=1.0, lmbda=1, norm="l2"),
    ],
)
def test_bad_arguments_say_so(call):
    with pytest.raises(ValueError, match="must be"):
        call(jnp.ones((4, 2)))
