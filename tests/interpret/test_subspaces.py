"""Spectra, ranks and angles of features that are built to have them; what the panels draw."""

import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.interpret import subspaces
from crate_jax.interpret.plots import make_figure
from crate_jax.interpret.subspace_plots import heat_map, spectra


def _frame(rows, columns, seed):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((rows, columns)))[0]


@pytest.fixture(scope="module")
def built():
    """Two classes with the singular values 3, 2 and 5, the rows of one between the other's."""
    U = _frame(6, 3, 0)
    Z_0 = _frame(4, 2, 1) * [3.0, 2.0] @ U[:, :2].T
    Z_1 = _frame(5, 1, 2) * [5.0] @ U[:, 2:].T
    order = np.array([8, 0, 4, 1, 5, 2, 6, 3, 7])
    return np.concatenate([Z_0, Z_1])[order], np.repeat([0, 1], [4, 5])[order], U


def test_spectra_and_ranks_are_what_was_built(built):
    Z, labels, _ = built
    first, second, none = subspaces.class_spectra(jnp.asarray(Z), labels, 3)
    np.testing.assert_allclose(first, [3, 2, 0, 0], atol=1e-6)
    np.testing.assert_allclose(second, [5, 0, 0, 0, 0], atol=1e-6)
    assert none.shape == (0,)
    assert subspaces.class_ranks(Z, labels, 3) == [2, 1, 0]
    np.testing.assert_allclose(
        subspaces.singular_values(Z)[:3], [5, 3, 2], rtol=1e-12
    )  # the classes are orthogonal


def test_a_rank_is_counted_against_one_scale():
    assert subspaces.numerical_rank([1.0, 0.02, 0.009]) == 2
    assert subspaces.numerical_rank([1e-12, 1e-13]) == 2
    assert subspaces.numerical_rank([1e-12, 1e-13], largest=1.0) == 0
    assert subspaces.numerical_rank([1.0, 0.4, 0.6], rel=0.5) == 2


def test_angles_between_rows_and_between_subspaces(built):
    Z, labels, U = built
    assert subspaces.max_cosine_between(Z, labels, 2) < 1e-12
    assert subspaces.principal_cosine(Z[labels == 0], Z[labels == 1], 2, 1) < 1e-12
    mixed = Z.copy()
    mixed[labels == 1] = 5 * (U[:, 2] + U[:, 0]) / np.sqrt(2)  # 45 degrees to the first direction
    assert subspaces.principal_cosine(
        mixed[labels == 0], mixed[labels == 1], 2, 1
    ) == pytest.approx(np.sqrt(0.5))
    assert subspaces.principal_cosine(Z, Z, 0, 2) == 0
    flat = [[1.0, 0.0], [0.6, -0.8], [0.0, 0.0], [0.8, 0.6]]
    assert subspaces.max_cosine_between(flat, [0, 0, 1, -1], 2) == 0  # zero row; no class
    assert subspaces.max_cosine_between(flat, [0, 1, 1, 1], 2) == pytest.approx(0.8)


def test_labels_are_sorted_and_stay_in_order():
    np.testing.assert_array_equal(subspaces.label_order([1, 0, 1, 0]), [1, 3, 0, 2])


def test_a_heat_map_shows_cosines_in_order(built):
    Z, labels, _ = built
    axes = make_figure(3, 3).subplots()
    order = subspaces.label_order(labels)
    shown = heat_map(axes, Z, order=order, title="rows").get_array()
    sorted_rows = Z[order] / np.linalg.norm(Z[order], axis=1, keepdims=True)
    np.testing.assert_allclose(shown, np.abs(sorted_rows @ sorted_rows.T), atol=1e-12)
    assert shown[:4, 4:].max() < 1e-12 and axes.get_title() == "rows"
    assert heat_map(axes, Z, Z[:2]).get_array().shape == (9, 2)


def test_spectra_are_descending_and_references_dashed():
    axes = make_figure(3, 3).subplots()
    spectra(axes, {"a": np.array([1.0, 3.0]), "b": np.array([2.0])}, {"a": 2.5}, log=True)
    a, dashed, b = axes.lines
    assert list(a.get_ydata()) == [3, 1] and list(b.get_xdata()) == [1]
    assert dashed.get_linestyle() == "--" and dashed.get_color() == a.get_color()
    assert axes.get_yscale() == "log"
