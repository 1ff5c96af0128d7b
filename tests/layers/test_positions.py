import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from crate_jax.layers.positions import resample, sincos2d


def np_torch_bicubic(table, new):
    """``(h, w, d)`` to ``(*new, d)``, pixel by pixel and tap by tap."""

    def weight(t, A=-0.75):
        t = abs(t)
        if t <= 1:
            return (A + 2) * t**3 - (A + 3) * t**2 + 1
        return A * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0

    def taps(i, old, new):
        source = (i + 0.5) / ((new + 0.1) / old) - 0.5
        first = int(np.floor(source)) - 1
        return [(min(max(j, 0), old - 1), weight(source - j)) for j in range(first, first + 4)]

    out = np.zeros((*new, table.shape[-1]))
    for i, j in np.ndindex(new):
        for row, a in taps(i, table.shape[0], new[0]):
            for column, b in taps(j, table.shape[1], new[1]):
                out[i, j] += a * b * table[row, column]
    return out


def np_zoom(table, new):
    """CRATE-alpha's call: scipy's zoom of order 1, by the ratio of the sides."""
    return scipy.ndimage.zoom(table, (new[0] / table.shape[0], new[1] / table.shape[1], 1), order=1)


ORACLES = {"torch_bicubic": np_torch_bicubic, "linear": np_zoom}


def np_resample(table_1ND, new, method):
    """A table with a class token, made on a square grid."""
    side = round((table_1ND.shape[1] - 1) ** 0.5)
    patches = ORACLES[method](table_1ND[0, 1:].reshape(side, side, -1), new)
    return np.concatenate([table_1ND[:, :1], patches.reshape(1, new[0] * new[1], -1)], axis=1)


@pytest.mark.parametrize("method", ORACLES)
@pytest.mark.parametrize("new", [(6, 6), (2, 2), (7, 3), (1, 4), (14, 14)], ids=str)
def test_resampling_matches_the_reference(x64, method, new):
    table = np.random.default_rng(0).normal(size=(1, 1 + 16, 3))
    got = resample(jnp.asarray(table), new, method=method)
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, np_resample(table, new, method), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("method", ORACLES)
def test_an_oblong_table_without_class_token(x64, method):
    table = np.random.default_rng(0).normal(size=(3, 5, 2))
    got = resample(
        jnp.asarray(table.reshape(1, 15, 2)), (4, 7), method=method, old_grid=(3, 5), leading=0
    )
    want = ORACLES[method](table, (4, 7)).reshape(1, 28, 2)
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)


def test_the_same_grid_gives_the_table_itself():
    table = jnp.ones((1, 10, 2))
    assert resample(table, (3, 3)) is table


def test_the_released_scale_moves_bicubic_but_not_linear_corners():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(1, 17, 1)), jnp.float32)
    bicubic, linear = (np.asarray(resample(table, (8, 8), method=name)) for name in ORACLES)
    np.testing.assert_allclose(
        linear[0, [1, 8, 57, 64]], np.asarray(table)[0, [1, 4, 13, 16]], rtol=1e-6
    )
    assert (np.abs(bicubic - linear)[0, 1:] > 1e-4).mean() > 0.9


def test_wrong_tables_and_methods_are_refused():
    with pytest.raises(ValueError, match="7 patch positions is no grid"):
        resample(jnp.ones((1, 8, 2)), (2, 2))
    with pytest.raises(ValueError, match="one of .*'linear'.*; got 'cubic'"):
        resample(jnp.ones((1, 10, 2)), (2, 2), method="cubic")


@pytest.mark.parametrize("grid", [(2, 3), (4, 4)], ids=str)
@pytest.mark.parametrize("width", [4, 8, 12])
def test_sincos_is_its_formula(grid, width):
    """Quarters sin x, cos x, sin y, cos y at 10000^(-i/(width/4 - 1)); x counts columns."""
    table, quarter = sincos2d(grid, width), width // 4
    assert table.shape == (grid[0] * grid[1], width)
    for row, column, i in np.ndindex(*grid, quarter):
        frequency = 10000 ** (-i / max(quarter - 1, 1))
        x, y = column * frequency, row * frequency
        got = table[row * grid[1] + column, i::quarter]
        np.testing.assert_allclose(got, [np.sin(x), np.cos(x), np.sin(y), np.cos(y)], atol=1e-12)


def test_sincos_needs_four_quarters():
    with pytest.raises(ValueError, match="divisible by 4; got 6"):
        sincos2d((2, 2), 6)
