"""The synthetic laws have the dimensions, norms and alterations that they promise."""

import dataclasses

import numpy as np
import pytest

from crate_jax.config import ConfigError
from crate_jax.data import subspaces
from crate_jax.data.subspaces import SubspaceLaw

SMALL = SubspaceLaw(sizes=(40, 50, 60), dims=(2, 3, 4), ambient=12)


def test_each_class_has_its_dimension_and_all_are_independent():
    train, test = subspaces.draw(SMALL, 0)
    for samples in (train, test):
        assert samples.X.shape == (150, 12)
        np.testing.assert_array_equal(np.bincount(samples.y), SMALL.sizes)
        ranks = [np.linalg.matrix_rank(samples.X[samples.y == j]) for j in range(3)]
        assert ranks == [2, 3, 4] and np.linalg.matrix_rank(samples.X) == 9
    both = np.concatenate([train.X[train.y == 1], test.X[test.y == 1]])
    assert np.linalg.matrix_rank(both) == 3 and not np.isin(train.X, test.X).any()
    again, _ = subspaces.draw(SMALL, 0)
    np.testing.assert_array_equal(train.X, again.X)


@pytest.mark.parametrize("mixing, amount", [("blend", 0.1), ("perturb", 0.1), ("perturb", 1e6)])
def test_directions_have_unit_length_and_share_a_pool(mixing, amount):
    law = dataclasses.replace(SMALL, mixing=mixing, amount=amount, ambient=400)
    bases = subspaces.draw_bases(law, np.random.default_rng(0))
    for U in bases:
        np.testing.assert_allclose(np.linalg.norm(U, axis=0), 1, rtol=1e-12)
    unmixed = subspaces.draw_bases(dataclasses.replace(law, amount=0.0), np.random.default_rng(0))
    span = np.linalg.norm(np.concatenate([U.T for U in unmixed]), ord=2)
    assert span > 1.4  # two classes share a direction where nothing is mixed in
    if amount == 1e6:
        assert max(np.abs(bases[0].T @ bases[1]).max(), np.abs(bases[0].T @ bases[2]).max()) < 0.25


def test_a_single_subspace_keeps_lengths():
    law = SubspaceLaw(sizes=(2000,), dims=(3,), ambient=8)
    (U,) = subspaces.draw_bases(law, np.random.default_rng(0))
    np.testing.assert_allclose(U.T @ U, np.eye(3), atol=1e-14)
    train, _ = subspaces.draw(law, 0)
    assert abs((train.X**2).sum(axis=1).mean() / 3 - 1) < 0.1


def test_noise_outliers_and_wrong_labels_are_as_many_and_as_large_as_asked_for():
    law = dataclasses.replace(SMALL, sizes=(1000, 1000, 1000))
    clean, _ = subspaces.draw(law, 0)
    noisy, _ = subspaces.draw(dataclasses.replace(law, noise=0.5), 0)
    assert abs(((noisy.X - clean.X) ** 2).sum(axis=1).mean() / 0.5 - 1) < 0.1
    strays, _ = subspaces.draw(dataclasses.replace(law, outliers=0.1, outlier_energy=9.0), 0)
    changed = (strays.X != clean.X).any(axis=1)
    assert changed.sum() == 300
    assert abs((strays.X[changed] ** 2).sum(axis=1).mean() / 9 - 1) < 0.2
    wrong, _ = subspaces.draw(dataclasses.replace(law, label_corruption=0.3), 0)
    # drawn from three classes, the right one possible: two thirds of 900 change
    assert 520 < (wrong.y != clean.y).sum() < 680


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"dims": (2, 3)}, "an entry a class each; got 3 and 2"),
        ({"dims": (2, 3, 13)}, "must be from 1 to ambient=12"),
        ({"sizes": (0, 1, 1)}, "sizes must be at least 1"),
        ({"mixing": "add"}, "one of blend, perturb; got 'add'"),
        ({"noise": -1.0}, "noise must be at least 0"),
        ({"outliers": 2.0}, "outliers must be from 0 to 1"),
    ],
)
def test_what_cannot_be_is_a_sentence(changes, words):
    with pytest.raises(ConfigError, match=words):
        subspaces.check(dataclasses.replace(SMALL, **changes))
