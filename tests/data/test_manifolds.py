"""The data sets: shapes, the manifolds' equations, the processes' covariance, images and back."""

import numpy as np
import pytest

from crate_jax.config import ConfigError
from crate_jax.data import manifolds
from crate_jax.data.manifolds import gaussian_process, load


def test_the_curves_are_on_their_equations():
    sine, arc = load("sine", test=5), load("semicircle", test=5)
    for X in (sine.X, sine.X_test):
        np.testing.assert_allclose(X[:, 1], np.sin(X[:, 0]))
    assert sine.X.shape == arc.X.shape == (50, 2) and sine.X_test.shape == (5, 2)
    np.testing.assert_allclose(sine.X[1, 0], 2 * np.pi / 50)
    for X in (arc.X, arc.X_test):
        np.testing.assert_allclose(np.linalg.norm(X, axis=1), 1)


def test_the_roll_is_lifted_onto_a_paraboloid_of_unit_rms():
    roll = load("swiss_roll", points=200, test=30)
    assert roll.X.shape == (200, 4) and roll.X_test.shape == (30, 4)
    np.testing.assert_allclose(np.mean(roll.X**2), 1)
    for X in (roll.X, roll.X_test):
        square = X[:, 0] ** 2 + X[:, 2] ** 2
        np.testing.assert_allclose(X[:, 3] / square, X[0, 3] / square[0], rtol=1e-9)
    np.testing.assert_allclose(roll.X[:, 3].max() / roll.X[:, 3].min(), 9, rtol=0.2)


@pytest.mark.parametrize("exact", [True, False], ids=["exact", "random features"])
def test_a_process_has_its_covariance(monkeypatch, exact):
    if not exact:
        monkeypatch.setattr(manifolds, "EIGH_POINTS", 0)
    P = np.array([[0.0, 0.0], [0.5, 0.0], [0.5, 1.5]])
    D = 2000
    X = gaussian_process(P, D, np.random.default_rng(0), scale=2.0)
    expected = 4 * np.exp(-np.sum((P[:, None] - P[None]) ** 2, -1) / 2)
    np.testing.assert_allclose(X @ X.T, expected, atol=0.4)


def test_gaussian_processes_have_the_sizes_asked_for():
    gp, curve = load("gp", points=30, test=4, ambient=7, dim=3), load("gp_curves", dim=1, ambient=2)
    assert gp.X.shape == (30, 7) and gp.X_test.shape == (4, 7) and gp.dim == 3
    assert curve.X.shape == (50, 2)
    assert 0 <= curve.parameters.min() < 0.1 and 0.9 < curve.parameters.max() <= 1
    gaps = np.diff(np.sort(curve.parameters[:, 0]))
    assert gaps.max() > 3 * np.median(gaps)  # drawn, not laid out
    assert manifolds.EIGH_POINTS >= 7000  # the paper's largest, with its test points
    again = load("gp", points=30, test=4, ambient=7, dim=3)
    np.testing.assert_array_equal(gp.X, again.X)


def test_squares_stand_everywhere_and_come_back_from_their_coordinates():
    squares = load("squares_10_5")
    assert squares.X.shape == (25, 24) and load("squares_20_10").X.shape[0] == 100
    images = squares.to_images(squares.X)
    expected = np.zeros((10, 10))
    expected[2:7, 3:8] = 1
    np.testing.assert_allclose(images[2 * 5 + 3], expected, atol=1e-9)


def test_digits_of_one_class_and_their_moves():
    eights = load("mnist", source="digits", digit=8, points=40, test=5, components=39)
    assert eights.X.shape == (40, 39) and eights.X_test.shape == (5, 39)
    images = eights.to_images(eights.X)
    assert images.shape == (40, 8, 8) and images.min() > -1e-9 and images.max() < 1 + 1e-9
    fewer = load("mnist_moves", source="digits", digit=8, points=38, test=7, components=10)
    assert fewer.X.shape == (40, 10) and fewer.X_test.shape == (7, 10) and fewer.dim == 2
    np.testing.assert_allclose(np.mean(fewer.X**2), 1)
    assert len(np.unique(fewer.parameters[:, 1])) == 8


def test_what_there_is_not_is_a_sentence():
    with pytest.raises(ConfigError, match="did you mean 'sine'"):
        load("sin")
    with pytest.raises(ConfigError, match="leaves 0 to flatten"):
        load("mnist", source="digits", test=1000)
