"""The games play by the published rules, on moments as on samples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.data.subspaces import SubspaceLaw, draw
from crate_jax.studies.games import batches, play
from crate_jax.studies.games.players import LinearGame, NetworkGame
from tests.studies.games.little import GAME, TASK


def _rate(Z):
    """``R(Z)`` and its gradient ``a Z (I + a Z^T Z)^{-1}``, at eps_sq 0.8."""
    n, d = Z.shape
    a = d / (n * 0.8)
    inside = np.eye(d) + a * Z.T @ Z
    return 0.5 * np.linalg.slogdet(inside)[1], a * Z @ np.linalg.inv(inside)


def _quality(Z, y):
    """``Delta R`` and its gradient."""
    value, gradient = _rate(Z)
    for j in np.unique(y):
        part, slope = _rate(Z[y == j])
        value -= np.mean(y == j) * part
        gradient[y == j] -= np.mean(y == j) * slope
    return value, gradient


def _distance(Z, Zhat, y):
    """The summed distance and its gradients in both arguments."""
    total, first, second = 0.0, np.zeros_like(Z), np.zeros_like(Z)
    for j in np.unique(y):
        A, B = Z[y == j], Zhat[y == j]
        both, slope = _rate(np.concatenate([A, B]))
        (a, slope_a), (b, slope_b) = _rate(A), _rate(B)
        total += both - 0.5 * a - 0.5 * b
        first[y == j] = slope[: len(A)] - 0.5 * slope_a
        second[y == j] = slope[len(A) :] - 0.5 * slope_b
    return total, first, second


def test_few_rows_have_the_second_moments_of_a_class():
    train = TASK.train
    order = batches.batch_order(21, 0, 1, True, np.random.default_rng(0))
    rows = batches.class_rows(train.X, train.y, 3, order)
    assert rows == 3  # the largest dimension, not the twelve samples
    seen = batches.moments(train.X, train.y, 3, rows)
    for j in range(2):
        X = train.X[train.y == j]
        np.testing.assert_allclose(
            seen.rows[j].T @ seen.rows[j] / rows, X.T @ X / len(X), atol=1e-12
        )
    assert not seen.rows[2].any()
    np.testing.assert_allclose(seen.share, [12 / 21, 9 / 21, 0])


def test_batches_pass_over_the_samples_and_leave_out_what_fills_none():
    rng = np.random.default_rng(0)
    plain = batches.batch_order(7, 3, 2, False, rng)
    np.testing.assert_array_equal(plain, [[0, 1, 2], [3, 4, 5]] * 2)
    mixed = batches.batch_order(6, 3, 2, True, rng)
    assert (np.sort(mixed.reshape(2, 6)) == np.arange(6)).all() and (mixed[:2] != mixed[2:]).any()


def test_payoffs_of_moments_are_those_of_the_samples(x64):
    train = TASK.train
    batch = batches.take(train.X, train.y, 3, np.arange(21), 3, np.float64)
    game = dataclasses.replace(GAME, num_classes=3, features=8)  # Grams of the rows are smaller
    F, G = game.init(jax.random.key(0), jnp.float64)
    single = dataclasses.replace(game, name="ssp")
    (Q, C), of_one = jax.jit(lambda *x: (game.payoffs(*x), single.payoffs(*x)))(F, G, batch)
    Z = train.X @ np.asarray(F).T
    Zhat = Z @ np.asarray(G).T @ np.asarray(F).T
    np.testing.assert_allclose(Q, _quality(Z, train.y)[0], rtol=1e-10)
    np.testing.assert_allclose(C, -_distance(Z, Zhat, train.y)[0], rtol=1e-10)
    np.testing.assert_allclose(of_one, (_rate(Z)[0], C), rtol=1e-10)


def test_payoffs_of_networks_are_those_of_features_of_unit_length(x64):
    train, network = TASK.train, NetworkGame("msp", 2, 7, 6, 0.8, width=5)
    rng = np.random.default_rng(1)
    F, G = (
        [{"kernel": rng.normal(size=(n, m)), "bias": rng.normal(size=m)} for n, m in sizes]
        for sizes in (((7, 5), (5, 6)), ((6, 5), (5, 7)))
    )

    def apply(layers, X):
        first, last = layers
        hidden = np.maximum(X @ first["kernel"] + first["bias"], 0)
        return hidden @ last["kernel"] + last["bias"]

    def unit(Z):
        return Z / np.linalg.norm(Z, axis=1, keepdims=True)

    Z = unit(apply(F, train.X))
    Zhat = unit(apply(F, apply(G, Z)))
    batch = batches.Labelled(jnp.asarray(train.X), jnp.asarray(train.y))
    Q, C = jax.jit(network.payoffs)(F, G, batch)
    np.testing.assert_allclose(Q, _quality(Z, train.y)[0], rtol=1e-10)
    np.testing.assert_allclose(C, -_distance(Z, Zhat, train.y)[0], rtol=1e-10)


def test_labels_outside_the_classes_are_no_ones(x64):
    X, y = np.eye(4), np.array([0, 0, 1, 5])
    seen = batches.moments(X, y, 2, 2)
    np.testing.assert_allclose(seen.share, [0.5, 0.25])


def _adam(x, g, m, v, t, rate):
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    return x - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8), m, v


def test_two_turns_are_the_published_algorithm_on_samples(x64):
    train = TASK.train
    state = play.init_state(GAME, jax.random.key(0), jnp.float64)
    F, G = np.array(state.F), np.array(state.G)
    turn = play.make_turn(GAME, 3)
    mF, vF, mG, vG, t = 0.0, 0.0, 0.0, 0.0, 0
    chosen = [np.arange(0, 21, 2), np.arange(1, 21, 2)]
    for number, order in enumerate(chosen, 1):
        X, y = train.X[order], train.y[order]
        batch = batches.take(train.X, train.y, 2, order, 3, np.float64)
        state, record = turn(state, batch, (0.01, 0.001))
        Z = X @ F.T
        back = Z @ G.T
        _, dQ = _quality(Z, y)
        _, dZ, dZhat = _distance(Z, back @ F.T, y)
        g = -(dQ + dZ + dZhat @ F @ G).T @ X - dZhat.T @ back
        F, mF, vF = _adam(F, g, mF, vF, number, 0.01)
        F = _project(F, [X[y == j] for j in range(2)])
        Z = X @ F.T
        for _ in range(3):
            t += 1
            _, _, dZhat = _distance(Z, Z @ G.T @ F.T, y)
            G, mG, vG = _adam(G, (dZhat @ F).T @ Z, mG, vG, t, 0.001)
        np.testing.assert_allclose(state.F, F, rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(state.G, G, rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(record.quality, _quality(Z, y)[0], rtol=1e-7)
        C = -_distance(Z, Z @ G.T @ F.T, y)[0]
        np.testing.assert_allclose(record.consistency, C, rtol=1e-6)
        assert record.excess < 1e-9


def _project(F, classes):
    """The nearest F with ``||F X_j||^2 <= n_j``, by plain ascent on the dual."""
    from scipy import optimize

    moments = [X.T @ X / len(X) for X in classes]

    def solve(mu):
        return F @ np.linalg.inv(
            np.eye(F.shape[1]) + sum(m * S for m, S in zip(mu, moments, strict=True))
        )

    def negative_dual(mu):
        P = solve(mu)
        excess = np.array([np.trace(P @ S @ P.T) - 1 for S in moments])
        return -0.5 * ((P - F) ** 2).sum() - 0.5 * mu @ excess, -0.5 * excess

    found = optimize.minimize(
        negative_dual, np.ones(len(classes)), jac=True, method="L-BFGS-B",
        bounds=[(0, None)] * len(classes), options={"ftol": 1e-16, "gtol": 1e-11, "maxiter": 1000},
    )  # fmt: skip
    return solve(found.x)


@pytest.mark.parametrize(
    "features, manifold, encoder, decoder",
    [
        (4, "official", False, True),
        pytest.param(9, "official", True, False, marks=pytest.mark.slow),
        pytest.param(4, "stiefel", True, True, marks=pytest.mark.slow),
    ],
)
def test_players_of_one_subspace_stay_orthonormal(features, manifold, encoder, decoder, x64):
    game = LinearGame("ssp", 1, 7, features, 1.0, manifold=manifold)
    assert (game.encoder_is_riemannian, game.decoder_is_riemannian) == (encoder, decoder)
    train, _ = draw(SubspaceLaw(sizes=(20,), dims=(3,), ambient=7), 0)
    batch = batches.take(train.X, train.y, 1, np.arange(20), 3, np.float64)
    state = play.init_state(game, jax.random.key(0), jnp.float64)
    state, record = play.make_turn(game, 5)(state, batch, (0.01, 0.001))
    for x in (state.F, state.G):
        x = np.asarray(x if x.shape[0] >= x.shape[1] else x.T)
        np.testing.assert_allclose(x.T @ x, np.eye(x.shape[1]), atol=1e-12)
    assert record.excess < 1e-12 and record.consistency <= 0


def test_a_decoder_that_is_projected_is_back_in_its_set_after_any_step(x64):
    game = LinearGame("ssp", 1, 4, 5, 1.0)
    G = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 4)))[0].T
    gradient = np.random.default_rng(1).normal(size=G.shape)
    follow = jax.jit(game.follow)
    for rate in (1e-3, 1.0):
        new = follow(G, gradient, game.init_optimizers(G.T, jnp.asarray(G))[1], rate)[0]
        U, _, Vt = np.linalg.svd(G - rate * np.sign(gradient), full_matrices=False)
        np.testing.assert_allclose(new, U @ Vt, atol=1e-7)


def test_rates_fall_along_a_half_cosine():
    assert play.rates_at(3, 4, 1.0, 0.1, False) == (1.0, 0.1)
    np.testing.assert_allclose(play.rates_at(2, 4, 1.0, 0.1, True), (0.5, 0.05))
