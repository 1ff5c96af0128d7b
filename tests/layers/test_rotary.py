import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.layers.rotary import Rope, frequencies, rotate, tables

LLAMA31 = Rope(500_000.0, "llama3", factor=8.0, low=1.0, high=4.0, original_length=8192)


def test_frequencies_are_powers_of_the_base():
    np.testing.assert_allclose(frequencies(Rope(10_000.0), 4, 9), [1, 0.01], rtol=1e-15)
    np.testing.assert_allclose(
        frequencies(Rope(10_000.0, "linear", factor=4.0), 4, 9), [0.25, 0.0025], rtol=1e-15
    )


def test_float32_frequencies_are_those_of_the_reference_to_the_last_bit():
    """As transformers 5.24.0 has them in float32, where a last bit is not the nearest one."""
    wanted = (
        "0x1.0000000p+0", "0x1.8d27600p-3", "0x1.3411900p-5", "0x1.ddee9e0p-8",
        "0x1.72ba420p-10", "0x1.1f91f00p-12", "0x1.be21880p-15", "0x1.5a0f4e0p-17",
    )  # fmt: skip
    got = frequencies(Rope(500_000.0), 16, 9, np.float32)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, [np.float32(float.fromhex(x)) for x in wanted])


def test_dynamic_scaling_begins_beyond_the_models_own_length():
    plain, rope = Rope(1000.0), Rope(1000.0, "dynamic", factor=3.0, original_length=32)
    np.testing.assert_array_equal(frequencies(rope, 8, 32), frequencies(plain, 8, 32))
    base = 1000 * (3 * 48 / 32 - 2) ** (8 / 6)
    wanted = [base ** (-i / 8) for i in (0, 2, 4, 6)]
    np.testing.assert_allclose(frequencies(rope, 8, 48), wanted, rtol=1e-14)


def test_llama3_keeps_short_waves_and_stretches_long_ones():
    plain, scaled = (frequencies(r, 128, 9) for r in (Rope(500_000.0), LLAMA31))
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
