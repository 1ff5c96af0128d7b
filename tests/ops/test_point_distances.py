"""Extreme distances by brute force."""

import numpy as np
import pytest

from crate_jax.ops import point_distances


@pytest.mark.parametrize("N", [pytest.param(3, marks=pytest.mark.slow), 700])
def test_extreme_distances_by_brute_force(x64, N):
    X = np.random.default_rng(N).normal(size=(N, 4))
    far = np.linalg.norm(X[:, None] - X[None], axis=-1)
    np.testing.assert_allclose(point_distances.diameter(X), far.max(), rtol=1e-10)
    np.fill_diagonal(far, np.inf)
    np.testing.assert_allclose(point_distances.smallest_distance(X), far.min(), rtol=1e-8)


@pytest.mark.slow
def test_sweeps_find_most_of_the_diameter(x64, monkeypatch):
    X = np.random.default_rng(5).normal(size=(500, 3))
    exact = point_distances.diameter(X)
    monkeypatch.setattr(point_distances, "EXACT", 10)
    assert 0.9 * exact < point_distances.diameter(X) <= exact * (1 + 1e-12)
