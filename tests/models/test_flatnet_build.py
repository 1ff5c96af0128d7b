"""Constructions: what they find on known manifolds, their guards, shards, and taking up again."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from crate_jax.config import ConfigError
from crate_jax.models.flatnet import decode, encode
from crate_jax.models.flatnet_build import Builder, _apply, _Search, build
from crate_jax.models.flatnet_settings import Construction


def sine(N=50):
    x = 2 * np.pi * np.arange(N) / N
    return np.stack([x, np.sin(x)], 1).astype(np.float32)


@pytest.fixture(scope="module")
def flat_sine():
    return build(sine(), n_iter=300, thres_recon=1e-6)


@pytest.mark.slow
def test_a_sine_becomes_a_line(flat_sine):
    stack = flat_sine.stack
    assert stack.intrinsic_dimension == 1 and set(stack.dims) == {1}
    first, last = flat_sine.iterations[0], flat_sine.iterations[-1]
    assert first.outside > 0.03 and last.outside < 1e-6
    Z = flat_sine.features
    np.testing.assert_allclose(np.linalg.norm(Z, axis=1).max(), 1, rtol=1e-5)
    np.testing.assert_allclose(Z.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(encode(stack, sine()), Z, atol=1e-4)
    for layer in range(stack.depth):
        U = stack.layers.U[layer]
        np.testing.assert_allclose(U.T @ U, 1, atol=1e-5)


@pytest.mark.slow
def test_the_reverse_order_rebuilds_better_than_the_one_shipped(flat_sine):
    X, stack = sine(), flat_sine.stack
    Z = np.asarray(encode(stack, X))
    direction = np.linalg.svd(Z - Z.mean(0))[2][:1]
    flat = (Z - Z.mean(0)) @ direction.T @ direction + Z.mean(0)
    reverse, shipped = (
        np.mean((np.asarray(decode(stack, flat, order)) - X) ** 2)
        for order in ("reverse", "as_shipped")
    )
    pca = np.linalg.svd(X - X.mean(0))[1][1] ** 2 / X.size
    assert reverse < shipped and reverse < pca / 2


@pytest.mark.slow
def test_the_dimension_of_a_plane_and_of_a_cap():
    rng = np.random.default_rng(0)
    t = rng.uniform(-1, 1, (300, 2))
    plane = np.pad(t, ((0, 0), (0, 2)))
    cap = np.concatenate([t, 0.3 * np.sum(t**2, 1, keepdims=True), 0 * t[:, :1]], 1)
    for X in (plane, cap):
        Q, _ = np.linalg.qr(rng.normal(size=(4, 4)))
        builder = Builder((X @ Q).astype(np.float32), Construction(n_iter=4, n_iter_inner=300))
        while builder.ended is None:
            builder.advance()
        assert [it.d for it in builder.iterations[1:]] == [2, 2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("d", [2, 5])
def test_the_dimension_of_a_gaussian_process(d):
    from crate_jax.data.manifolds import load

    X = load("gp", points=1500, ambient=30, dim=d).X.astype(np.float32)
    assert build(X, n_iter=12).stack.intrinsic_dimension == d


SMALL = Construction(n_iter=4, n_iter_inner=40, d_max=1)


def curve(N=40):
    t = np.linspace(-1, 1, N)
    return np.stack([t, t**2, 0.3 * t**3], 1).astype(np.float32)


def run(builder):
    while builder.ended is None:
        builder.advance()
    return builder


def numbers(builder):
    """Iterations without their seconds."""
    return [dataclasses.replace(it, seconds=0.0) for it in builder.iterations]


@pytest.fixture(scope="module")
def small():
    return run(Builder(curve(), SMALL, seed=3))


def test_what_is_left_of_the_data_is_what_the_layers_make_of_them(small):
    assert small.stack.depth > 1
    np.testing.assert_allclose(encode(small.stack, curve()), small.features, atol=2e-6)


def test_without_renormalisation_the_normal_part_shrinks_and_no_more(small):
    points, layer = small.points, jax.tree.map(lambda x: x[0], small.stack.layers)
    r = np.float32(np.sqrt(np.log(2) / layer.gamma))
    arguments = (points, layer.U, layer.V, layer.mu, layer.x_c, r, layer.alpha)
    Z, made, moved = _apply(*arguments, renormalise=False)
    x = np.asarray(points.Z)[0].T
    c = x - layer.mu
    k = layer.alpha * np.exp(-layer.gamma * np.sum(c**2, 1, keepdims=True))
    expected = x - k * (c - c @ layer.U @ layer.U.T)
    np.testing.assert_allclose(np.asarray(Z)[0].T, expected, atol=1e-6)
    np.testing.assert_allclose(moved, np.sqrt(np.mean((expected - x) ** 2)), rtol=1e-4)
    assert not made.m.any() and made.s == 1


def searching(errors, before, **changes):
    """A dimension search after a layer of d = ``before`` in which a fit of d has ``errors[d]``."""
    construction = dataclasses.replace(SMALL, **{"d_max": 3, **changes})
    builder = Builder(curve(), construction)
    builder._d, unit = before, builder._diameter
    search, fits = _Search(builder, builder.points.Z[0, :, 0], np.random.default_rng(0)), []

    def fit(U, r):
        d = U.shape[1]
        fits.append(d)
        spread = np.where(np.arange(d) == 1, 0.1, 0.5)  # the second column is the one to drop
        return SimpleNamespace(
            U=U, error=errors[d] * unit, loss=0.01 * d, spread=spread, mass=10 * (r / unit) ** 2
        )

    search._run = fit
    r, U, loss = search.find_dimension()
    return r / unit, np.asarray(U), loss, fits


def test_the_dimension_grows_until_it_fits():
    r, U, loss, fits = searching({1: 1, 2: 0.046, 3: 0.044}, before=1)  # 0.3 of 0.15 is 0.045
    assert fits == [1, 2, 3] and U.shape == (3, 3) and loss == 0.03
    np.testing.assert_allclose(r, 0.15, rtol=1e-6)
    np.testing.assert_allclose(U.T @ U, np.eye(3), atol=1e-6)


def test_the_dimension_shrinks_to_the_last_that_fits_and_has_that_ones_loss():
    _, U, loss, fits = searching({1: 1, 2: 0, 3: 0}, before=3)
    assert fits == [3, 2, 1] and U.shape == (3, 2) and loss == 0.02


def test_the_dimension_stops_at_one_and_at_its_cap():
    _, U, loss, fits = searching({1: 0, 2: 0}, before=2)
    assert fits == [2, 1] and U.shape == (3, 1) and loss == 0.01
    _, U, _, fits = searching({1: 1, 2: 1}, before=1, d_max=2)
    assert fits == [1, 2] and U.shape == (3, 2)


def test_the_radius_of_the_search_grows_with_what_it_must_see():
    r, _, _, fits = searching({1: 0}, before=1, min_mass=1.0)  # a mass of 10 r^2 is 1 at r = 0.32
    np.testing.assert_allclose(r, 0.15 * 1.25**4, rtol=1e-6)
    assert fits == [1] * 5


def test_it_ends_after_quiet_iterations_at_the_largest_radius_in_a_row():
    builder = Builder(curve(), dataclasses.replace(SMALL, n_stop=2, n_iter=50))
    largest = builder._radius("r_max")
    radii = iter([largest, 0.5 * largest, largest, largest])

    def candidate(_):
        return SimpleNamespace(
            moved=0.5e-4, r=next(radii), d=1, loss=1.0, mass=1.0, fits=1, steps=1,
            layer=SimpleNamespace(alpha=0.0),
        )  # fmt: skip

    builder._candidate = candidate
    run(builder)
    assert len(builder.iterations) == 4 and builder.stack.depth == 0
    assert "2 iterations moved nothing" in builder.ended


def test_it_is_taken_up_again_bit_for_bit(small):
    stopped = Builder(curve(), SMALL, seed=3)
    for _ in range(2):
        stopped.advance()
    memory = jax.tree.map(np.asarray, stopped.memory())
    later = stopped.stack  # a file may hold more layers than the checkpoint knows
    again = Builder(curve(), SMALL, seed=3)
    again.recall(memory, later, stopped.iterations)
    run(again)
    assert numbers(again) == numbers(small) and again.ended == small.ended
    jax.tree.map(np.testing.assert_array_equal, again.stack, small.stack)
    np.testing.assert_array_equal(again.features, small.features)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["sharded", "chunked"])
def test_shards_and_chunks_change_nothing_but_rounding(x64, how):
    X = curve().astype(np.float64)
    construction = dataclasses.replace(SMALL, n_iter=3)
    whole = run(Builder(X, construction))
    if how == "sharded":
        mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
        other = run(Builder(X, construction, mesh=mesh))
        assert len(other.points.Z.sharding.device_set) == 4
    else:
        other = run(Builder(X, dataclasses.replace(construction, chunk=16)))
        assert other.points.Z.shape == (3, 3, 14)  # of 16 at most, alike
    np.testing.assert_allclose(other.features, whole.features, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "X",
    [
        np.random.default_rng(0).normal(size=(5, 3)),
        np.repeat(np.random.default_rng(1).normal(size=(8, 3)), 5, axis=0),
        np.pad(np.random.default_rng(2).normal(size=(40, 2)), ((0, 0), (0, 1)), constant_values=2),
    ],
    ids=["five points", "duplicates", "a constant column"],
)
def test_degenerate_data_give_finite_numbers(X):
    construction = Construction(n_iter=3, n_iter_inner=40, d_max=3)
    builder = run(Builder(X.astype(np.float32), construction))
    stack = builder.stack
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(stack.layers))
    assert np.isfinite(builder.features).all()


@pytest.mark.slow
def test_another_rule_sample_anchors_and_start():
    X = curve()
    changed = {
        "inner": "momentum", "retraction": "qr", "n_fit": 64, "n_anchors": 2, "start": "frame",
        "min_mass": 2.0,
    }  # fmt: skip
    builder = run(Builder(X, dataclasses.replace(SMALL, n_iter=2, **changed)))
    assert builder.iterations[0].fits >= 6 and np.isfinite(builder.features).all()


def test_the_radius_search_finds_where_the_loss_crosses_the_threshold():
    """A loss r^4, whose logarithm is concave: with the last two points alone, r runs to r_min."""
    found = {}
    for rounds, bracket in ((1, False), (2, False), (6, True)):
        construction = dataclasses.replace(
            SMALL, n_iter_rsearch=rounds, bracket=bracket, thres_recon=1e-4
        )
        builder = Builder(curve(), construction)
        search, unit = _Search(builder, builder.points.Z[0, :, 0], None), builder._diameter

        def fit(U, r, unit=unit):
            return SimpleNamespace(U=U, loss=0.01 * (r / unit) ** 4)

        search._run = fit
        found[rounds] = search.find_radius(None, 0.15 * unit, fit(None, 0.15 * unit).loss)[1] / unit
    f = {r: np.log(0.01 * r**4 / 1e-4) for r in (0.15, 0.625)}
    secant = 0.625 - f[0.625] * (0.625 - 0.15) / (f[0.625] - f[0.15])
    np.testing.assert_allclose(found[1], secant, rtol=1e-6)
    f[secant] = np.log(0.01 * secant**4 / 1e-4)
    plain = secant - f[secant] * (secant - 0.625) / (f[secant] - f[0.625])
    np.testing.assert_allclose(found[2], max(plain, 0.15), rtol=1e-6)
    np.testing.assert_allclose(found[6], 0.01**0.25, rtol=0.03)


@pytest.mark.slow
def test_the_energy_flag_ends_it():
    builder = build(curve(), n_iter=50, n_iter_inner=60, d_max=2, stop_energy=0.02)
    assert "energy outside" in builder.ended and len(builder.iterations) < 50


def test_bad_points_are_a_sentence():
    for X in (np.zeros((4, 3)), np.full((4, 3), np.nan), np.zeros(3)):
        with pytest.raises(ConfigError, match="points"):
            Builder(X, SMALL)
    with pytest.raises(ConfigError, match="did you mean 'head'"):
        build(curve(), preset="heda")
