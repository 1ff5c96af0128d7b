"""The stacked network against its layers one by one, at their own dimensions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.config import ConfigError
from crate_jax.models.flatnet import (
    FlatDecoder,
    FlatEncoder,
    Layer,
    decode,
    decoder_variables,
    encode,
    encoder_variables,
    pad_products,
    stack_layers,
)
from crate_jax.models.flatnet_build import _cut
from crate_jax.ops.flattening import products

DIMS = (2, 1, 3)


@pytest.fixture
def case(x64):
    rng = np.random.default_rng(0)
    layers = []
    for d in DIMS:
        U, _ = np.linalg.qr(rng.normal(size=(4, d)))
        V = 0.3 * rng.normal(size=(4, d * (d + 1) // 2))
        mu, x_c, m = 0.1 * rng.normal(size=(3, 4))
        numbers = (np.float64(x) for x in (1.3, 0.4))
        layers.append(Layer(U, V - U @ (U.T @ V), mu, x_c, *numbers, m, np.float64(0.8)))
    return layers, rng.normal(size=(7, 4)), rng.normal(size=4), np.float64(2.0)


def flatten(x, layer):
    """F in numpy."""
    c = x - layer.mu
    k = layer.alpha * np.exp(-layer.gamma * np.sum(c**2, 1, keepdims=True))
    return (x - k * (c - c @ layer.U @ layer.U.T) - layer.m) / layer.s


def reconstruct(z, layer):
    """G in numpy, its root by bisection."""
    y = layer.s * z + layer.m
    t = (y - layer.mu) @ layer.U
    nu = np.sum((y - layer.mu - t @ layer.U.T) ** 2, 1)
    a = layer.alpha * np.exp(-layer.gamma * np.sum(t**2, 1))
    low, high = nu, nu / (1 - a) ** 2
    for _ in range(100):
        rho = (low + high) / 2
        above = (1 - a * np.exp(-layer.gamma * rho)) ** 2 * rho > nu
        low, high = np.where(above, low, rho), np.where(above, rho, high)
    k = (a * np.exp(-layer.gamma * rho))[:, None]
    i, j = np.triu_indices(layer.U.shape[1])
    c, offset = (y - layer.x_c) @ layer.U, layer.x_c - layer.mu
    return y + k * (offset - layer.U @ (layer.U.T @ offset) + (c[:, i] * c[:, j]) @ layer.V.T)


def test_the_padded_stack_is_its_layers_one_by_one(case):
    layers, X, centre, scale = case
    stack = stack_layers(layers, centre, scale)
    assert stack.layers.U.shape == (3, 4, 3) and stack.layers.V.shape == (3, 4, 6)
    x = (X - centre) / scale
    for layer in layers:
        x = flatten(x, layer)
    Z = encode(stack, X)
    np.testing.assert_allclose(Z, x, rtol=1e-12)
    for order, sequence in (("reverse", layers[::-1]), ("as_shipped", layers)):
        z = x
        for layer in sequence:
            z = reconstruct(z, layer)
        np.testing.assert_allclose(decode(stack, Z, order), z * scale + centre, rtol=1e-10)
    for l, layer in enumerate(layers):
        jax.tree.map(np.testing.assert_array_equal, _cut(stack, l), layer)


@pytest.mark.slow
def test_products_keep_their_places_when_padded():
    c = np.array([[2.0, 3.0, 0.0, 0.0]])
    V = np.arange(1.0, 7.0).reshape(2, 3)
    full = np.asarray(products(jnp.asarray(c))) @ pad_products(V, 2, 4).T
    np.testing.assert_allclose(full, np.asarray(products(jnp.asarray(c[:, :2]))) @ V.T)


def test_the_modules_hold_the_stack(case):
    layers, X, centre, scale = case
    stack = stack_layers(layers, centre, scale)
    encoder, decoder = FlatEncoder.of(stack), FlatDecoder.of(stack)
    Z = encoder.apply(encoder_variables(stack), X)
    assert Z.dtype == jnp.float64
    np.testing.assert_allclose(Z, encode(stack, X), rtol=1e-13)
    X_hat = decoder.apply(decoder_variables(stack), Z)
    np.testing.assert_allclose(X_hat, decode(stack, Z), rtol=1e-13)
    shapes = jax.eval_shape(decoder.init, jax.random.key(0), X)
    assert jax.tree.structure(shapes) == jax.tree.structure(decoder_variables(stack))
    assert stack.intrinsic_dimension == 1 and stack.depth == 3


def test_no_layers_are_the_identity(case):
    _, X, centre, scale = case
    stack = stack_layers([], centre, scale)
    np.testing.assert_allclose(decode(stack, encode(stack, X)), X, rtol=1e-14)
    assert stack.intrinsic_dimension == 0


def test_an_order_that_there_is_none_of_is_a_sentence(case):
    layers, X, centre, scale = case
    with pytest.raises(ConfigError, match="did you mean 'reverse'"):
        decode(stack_layers(layers, centre, scale), X, "reversed")
