import jax
import jax.numpy as jnp
import numpy as np

from crate_jax.layers.initializers import torch_uniform
from crate_jax.layers.spectral_norm import COLLECTION, SpectralConv, SpectralDense, spectral_norm


def test_iterations_lead_to_the_largest_singular_value_and_its_gradient(x64):
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 2, 5)))
    U, s, Vt = np.linalg.svd(np.asarray(kernel).reshape(-1, 5), full_matrices=False)
    sigma, u = spectral_norm(kernel, jnp.ones(5), iterations=500)
    np.testing.assert_allclose(sigma, s[0], rtol=1e-10)
    np.testing.assert_allclose(abs(u @ Vt[0]), 1.0, rtol=1e-10)
    gradient = jax.grad(lambda w: spectral_norm(w, u)[0])(kernel)
    np.testing.assert_allclose(gradient.reshape(-1, 5), np.outer(U[:, 0], Vt[0]), atol=1e-8)


def test_training_keeps_the_vector_and_evaluation_does_not(x64):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 6)))
    layer = SpectralDense(3, torch_uniform(6), param_dtype="float64")
    variables = layer.init(jax.random.key(0), x)
    u = variables[COLLECTION]["u"]
    out, moved = layer.apply(variables, x, train=True, mutable=[COLLECTION])
    sigma, new = spectral_norm(variables["params"]["kernel"], u)
    np.testing.assert_array_equal(moved[COLLECTION]["u"], new)
    kernel, bias = variables["params"]["kernel"], variables["params"]["bias"]
    np.testing.assert_allclose(out, x @ (kernel / sigma) + bias[None], rtol=1e-12)
    _, still = layer.apply(variables, x, mutable=[COLLECTION])
    np.testing.assert_array_equal(still[COLLECTION]["u"], u)


def test_the_convolution_keeps_the_side():
    layer = SpectralConv(4, torch_uniform(9), side=3)
    out, _ = layer.init_with_output(jax.random.key(0), jnp.ones((1, 5, 5, 1)))
    assert out.shape == (1, 5, 5, 4)
