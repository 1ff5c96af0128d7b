import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.layers.rotary import Rope, frequencies, rotate, tables

LLAMA31 = Rope(500_000.0, "llama3", factor=8.0, low=1.0, high=4.0, original_length=8192)


def test_frequencies_are_powers_of_the_base():
    np.testing.assert_allclose(frequencies(Rope(10_000.0), 4), [1, 0.01], rtol=1e-15)
    np.testing.assert_allclose(
        frequencies(Rope(10_000.0, "linear", factor=4.0), 4), [0.25, 0.0025], rtol=1e-15
    )


def test_llama3_keeps_short_waves_and_stretches_long_ones():
    plain, scaled = frequencies(Rope(500_000.0), 128), frequencies(LLAMA31, 128)
    wavelength = 2 * math.pi / plain
    short, long = wavelength < 8192 / 4, wavelength > 8192
    np.testing.assert_array_equal(scaled[short], plain[short])
    np.testing.assert_allclose(scaled[long], plain[long] / 8, rtol=1e-15)
    between = ~short & ~long
    assert between.any() and short.any() and long.any()
    assert (scaled[between] < plain[between]).all()
    assert (scaled[between] > plain[between] / 8).all()
    assert (np.diff(scaled) < 0).all()


@pytest.mark.parametrize("rope", [Rope(), LLAMA31], ids=["default", "llama3"])
def test_products_depend_on_the_distance_alone(x64, rope):
    q, k = jax.random.normal(jax.random.key(0), (2, 8), jnp.float64)
    T = 12
    cos, sin = tables(rope, T, 8, jnp.float64)
    turned = [rotate(jnp.broadcast_to(x, (1, T, 1, 8)), cos, sin)[0, :, 0] for x in (q, k)]
    products = np.asarray(turned[0] @ turned[1].T)
    for distance in range(T):
        diagonal = np.diagonal(products, -distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-12)
    np.testing.assert_allclose(products[0, 0], q @ k, rtol=1e-12)


def test_pairs_are_halves_apart():
    cos, sin = tables(Rope(), 2, 4, jnp.float32)
    x = jnp.zeros((1, 2, 1, 4)).at[..., 0].set(1.0)
    turned = rotate(x, cos, sin)[0, 1, 0]
    np.testing.assert_allclose(turned, [math.cos(1), 0, math.sin(1), 0], atol=1e-6)
