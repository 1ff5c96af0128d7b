import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.ops import class_blocks
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
            gram = (Z * pi[:, None]).T @ Z
            total += n / (2 * N) * np.linalg.slogdet(np.eye(d) + d / (n * eps_sq) * gram)[1]
    return total


def np_subspace_rate(Z, U, eps_sq):
    N, p = Z.shape[0], U.shape[-1]
    return 0.5 * sum(
        np.linalg.slogdet(np.eye(p) + p / (N * eps_sq) * (Z @ u).T @ (Z @ u))[1] for u in U
    )


@pytest.mark.parametrize("shape", [(20, 6), (6, 20)])
def test_rates_match_numpy(x64, shape):
    rng = np.random.default_rng(0)
    Z = rng.normal(size=shape)
    labels = rng.integers(0, 3, shape[0])
    soft = rng.dirichlet(np.ones(4), shape[0])
    U = rng.normal(size=(3, shape[1], 5))
    hard = np.eye(3)[labels]

    @jax.jit
    def rates(Z):
        return {
            "whole": cr.coding_rate(Z, eps_sq=0.5),
            "hard": cr.class_coding_rate(Z, labels, 3, eps_sq=0.5),
            "soft": cr.class_coding_rate(Z, soft, 4, eps_sq=0.5),
            "subspaces": cr.subspace_coding_rate(Z, U, eps_sq=0.5),
            "reduction": cr.rate_reduction(Z, labels, 3, eps_sq=0.5),
            "l1": cr.sparse_rate_reduction(Z, U, eps_sq=0.5, lmbda=0.3, norm="l1"),
            "l0": cr.sparse_rate_reduction(Z, U, eps_sq=0.5, lmbda=0.3, norm="l0"),
        }

    got, R = rates(Z), np_rate(Z, 0.5)
    want = {
        "whole": R,
        "hard": np_class_rate(Z, hard, 0.5),
        "soft": np_class_rate(Z, soft, 0.5),
        "subspaces": np_subspace_rate(Z, U, 0.5),
        "reduction": R - np_class_rate(Z, hard, 0.5),
        "l1": R - np_subspace_rate(Z, U, 0.5) - 0.3 * np.abs(Z).sum(),
        "l0": R - np_subspace_rate(Z, U, 0.5) - 0.3 * Z.size,
    }
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("shape", [(18, 5), (6, 18)])
def test_gradients_match_closed_forms(x64, shape):
    rng = np.random.default_rng(1)
    Z, (N, d), eps_sq = rng.normal(size=shape), shape, 0.7
    alpha = d / (N * eps_sq)
    labels = np.arange(N) % 3
    U = rng.normal(size=(2, d, 4))

    @jax.jit
    def gradients(Z):
        return (
            jax.grad(lambda z: cr.coding_rate(z, eps_sq=eps_sq))(Z),
            jax.grad(lambda z: cr.class_coding_rate(z, labels, 3, eps_sq=eps_sq))(Z),
            jax.grad(lambda z: cr.subspace_coding_rate(z, U, eps_sq=eps_sq))(Z),
        )

    whole, classes, subspaces = gradients(Z)
    want = alpha * Z @ np.linalg.inv(np.eye(d) + alpha * Z.T @ Z)
    np.testing.assert_allclose(whole, want, rtol=1e-10)
    for k in range(3):
        Zk = Z[labels == k]
        inverse = np.linalg.inv(np.eye(d) + d / (len(Zk) * eps_sq) * Zk.T @ Zk)
        np.testing.assert_allclose(classes[labels == k], alpha * Zk @ inverse, rtol=1e-10)
    a = 4 / (N * eps_sq)
    want = sum(a * Z @ u @ np.linalg.inv(np.eye(4) + a * (Z @ u).T @ (Z @ u)) @ u.T for u in U)
    np.testing.assert_allclose(subspaces, want, rtol=1e-10)


def test_second_derivative_matches_finite_differences(x64):
    """Of the sum of two classes, so that there is a batch of log-determinants."""
    Z, V = np.random.default_rng(2).normal(size=(2, 12, 4))
    labels = np.arange(12) % 2
    grad = jax.grad(lambda z: cr.rate_reduction(z, labels, 2, eps_sq=0.5))
    got, above, below = jax.jit(
        lambda Z, V, h: (jax.jvp(grad, (Z,), (V,))[1], grad(Z + h * V), grad(Z - h * V))
    )(Z, V, 1e-5)
    assert got.dtype == "float64"
    np.testing.assert_allclose(got, (above - below) / 2e-5, atol=1e-8)


def test_invariances(x64):
    rng = np.random.default_rng(3)
    Z = rng.normal(size=(20, 5))
    Q = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    order = rng.permutation(20)
    labels = np.arange(20) % 4
    reduction = jax.jit(lambda Z, labels: cr.rate_reduction(Z, labels, 4, eps_sq=0.2))
    value = reduction(Z, labels)
    np.testing.assert_allclose(reduction(Z @ Q, labels), value, rtol=1e-12)
    np.testing.assert_allclose(reduction(Z[order], labels[order]), value, rtol=1e-12)


def test_batched_and_empty_class_and_bfloat16():
    rng = np.random.default_rng(4)
    Z = jnp.asarray(rng.normal(size=(3, 16, 8)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 2, (3, 16)))

    @jax.jit
    def results(Z):
        def total(Z):
            rates = cr.class_coding_rate(Z, labels, 5, eps_sq=0.5)
            return rates.sum(), rates

        (_, rates), grad = jax.value_and_grad(total, has_aux=True)(Z)
        return rates, grad, cr.coding_rate(Z.astype(jnp.bfloat16), eps_sq=0.5)

    batched, grad, low = results(Z)
    pairs = [(np.asarray(z, np.float64), np.eye(5)[l]) for z, l in zip(Z, labels, strict=True)]
    np.testing.assert_allclose(batched, [np_class_rate(z, P, 0.5) for z, P in pairs], rtol=1e-5)
    assert np.isfinite(grad).all()
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, [np_rate(z, 0.5) for z, _ in pairs], rtol=2e-2)


def test_official_protocol_and_its_bound(x64):
    rng = np.random.default_rng(5)
    W = rng.normal(size=(2, 3, 10, 4))
    W[0, 0, 0] = 0.0  # the released code returns nan here

    @jax.jit
    def rates(W):
        def total(W):
            values = cr.token_coding_rate(W)
            return values.sum(), values

        (_, values), grad = jax.value_and_grad(total, has_aux=True)(W)
        return values, grad

    got, grad = rates(W)
    norms = np.linalg.norm(W, axis=-1, keepdims=True)
    unit = W / np.where(norms > 0, norms, 1)
    want = [
        0.5 * sum(np.linalg.slogdet(np.eye(10) + 4 / (10 * 0.01) * w @ w.T)[1] for w in image)
        for image in unit
    ]
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert np.isfinite(grad).all()
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


def test_a_second_moment_has_the_rate_of_its_samples(x64):
    rng = np.random.default_rng(2)
    Z, F = rng.normal(size=(3, 40, 6)), rng.normal(size=(4, 6))
    S = np.einsum("bni,bnj->bij", Z, Z) / 40
    want = [np_rate(z @ F.T, 0.3) for z in Z]
    np.testing.assert_allclose(cr.second_moment_rate(F @ S @ F.T, eps_sq=0.3), want, rtol=1e-12)


def test_the_distance_of_two_sets_is_their_rate_reduction_as_classes(x64):
    rng = np.random.default_rng(3)
    A, B = rng.normal(size=(30, 6)), 2 * rng.normal(size=(10, 6))
    both = np.concatenate([A, B])
    want = np_rate(both, 0.5) - np_class_rate(both, np.eye(2)[[0] * 30 + [1] * 10], 0.5)
    distance = jax.jit(lambda A, B: cr.rate_distance(A, B, eps_sq=0.5))
    np.testing.assert_allclose(distance(A, B), want, rtol=1e-12)
    assert abs(distance(A, A)) < 1e-12


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_the_distance_by_class_sums_the_classes_without_weights(x64, soft):
    rng = np.random.default_rng(4)
    Z, Zhat = rng.normal(size=(2, 30, 6))
    labels = rng.integers(0, 3, 30)  # of 4 classes: one is absent
    Pi = np.eye(4)[labels]
    members = Pi if soft else labels
    got = jax.jit(lambda A, B: cr.class_rate_distance(A, B, members, 4, eps_sq=0.5))(Z, Zhat)
    want = sum(
        np_rate(np.concatenate([a, b]), 0.5) - 0.5 * np_rate(a, 0.5) - 0.5 * np_rate(b, 0.5)
        for a, b in ((Z[labels == k], Zhat[labels == k]) for k in range(3))
    )
    np.testing.assert_allclose(got, want, rtol=1e-12)


MANY = 40


@jax.jit
def _rate_of_many(Z, labels):
    return jax.value_and_grad(lambda Z: cr.class_coding_rate(Z, labels, MANY, eps_sq=0.5))(Z)


@pytest.mark.parametrize("case", ["balanced", "one large class", "few samples of no class"])
def test_many_classes_are_sorted_and_give_the_same(x64, case):
    rng = np.random.default_rng(5)
    N, d, K = 400, 80, MANY
    Z, labels = rng.normal(size=(N, d)), rng.permutation(np.arange(N) % K)
    if case == "one large class":
        labels[:200] = 7
    elif case == "few samples of no class":
        labels[:3] = -1, K, 99
    assert class_blocks.worth_it(Z, labels, K) and class_blocks.room(N, K) == 24
    value, gradient = _rate_of_many(Z, labels)
    Pi = np.arange(K) == labels[:, None]
    want = np.zeros_like(Z)
    for k in range(K):
        Z_k = Z[labels == k]
        if len(Z_k):
            inverse = np.linalg.inv(np.eye(d) + d / (len(Z_k) * 0.5) * Z_k.T @ Z_k)
            want[labels == k] = d / (N * 0.5) * Z_k @ inverse
    np.testing.assert_allclose(value, np_class_rate(Z, Pi, 0.5), rtol=1e-12)
    np.testing.assert_allclose(gradient, want, rtol=1e-9, atol=1e-12)


def test_many_classes_have_the_grams_of_a_loop(x64):
    rng = np.random.default_rng(6)
    N, d, K = 700, 72, 20
    Z, labels = rng.normal(size=(N, d)), np.minimum(rng.geometric(0.2, N) - 1, K + 1)
    sizes, grams = jax.jit(lambda Z, labels: cr.class_grams(Z, labels, K))(Z, labels)
    np.testing.assert_array_equal(sizes, [np.sum(labels == k) for k in range(K)])
    want = [Z[labels == k].T @ Z[labels == k] for k in range(K)]
    np.testing.assert_allclose(grams, want, atol=1e-11)


@pytest.mark.parametrize("where", ["cpu", "gpu"])
def test_a_batch_has_the_derivatives_of_its_matrices_on_every_platform(x64, monkeypatch, where):
    """The two ways to go through a batch, under ``vmap`` too, up to the third derivative."""
    monkeypatch.setattr(cr, "platform", lambda: where)
    rng = np.random.default_rng(7)
    Z, V = rng.normal(size=(2, 2, 3, 5, 4))
    G, D = (np.einsum("abni,abnj->abij", X, X) for X in (Z, V))

    def along(t):
        return cr.logdet_identity_plus(G + t * D)

    def mapped(t):
        return jax.vmap(jax.vmap(lambda G, D: cr.logdet_identity_plus(G + t * D)))(G, D)

    def derivatives(f):
        first = jax.jacrev(f)
        return f(0.0), first(0.0), jax.jacfwd(first)(0.0), jax.jacrev(jax.jacrev(first))(0.0)

    found = jax.jit(lambda: (derivatives(along), derivatives(mapped)))()
    inverse = np.linalg.inv(np.eye(4) + G)
    T = inverse @ D
    trace = lambda A: np.trace(A, axis1=-2, axis2=-1)  # noqa: E731
    want = np.linalg.slogdet(np.eye(4) + G)[1], trace(T), -trace(T @ T), 2 * trace(T @ T @ T)
    for got in found:
        for derivative, value in zip(got, want, strict=True):
            np.testing.assert_allclose(derivative, value, rtol=1e-11)


SCAN = """
import jax, jax.numpy as jnp
from crate_jax.ops import coding_rate as cr

Z, W = jax.random.normal(jax.random.key(0), (2, 10, 200, 150))
y = jnp.arange(2000) % 10

def classes(W):
    W, Y = W.reshape(2000, 150), Z.reshape(2000, 150)
    distance = cr.class_rate_distance(Y, W, y, 10, eps_sq=0.5)
    return distance - cr.rate_reduction(W, y, 10, eps_sq=0.5)

@jax.vmap
def mapped(W, Z):
    rates = cr.coding_rate(W, eps_sq=0.5), cr.coding_rate(W + Z, eps_sq=0.3)
    return sum(rates) - cr.coding_rate(Z, eps_sq=0.7)

@jax.jit
def descend(W):
    def loss(W):
        return LOSS

    return jax.lax.scan(lambda W, _: (W - 0.1 * jax.grad(loss)(W), loss(W)), W, None, 20)[1]

losses = descend(W)
assert jnp.isfinite(losses).all() and losses[-1] < losses[0], losses
"""


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["classes(W)", "mapped(W, Z).sum()"])
def test_independent_batches_in_one_program_do_not_wait_for_each_other(loss):
    """With two threads and full optimisation, as on a small machine; a hang is killed."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"NPROC": "2"}
    command = [sys.executable, "-c", SCAN.replace("LOSS", loss)]
    subprocess.run(command, env=environment, timeout=120, check=True)
