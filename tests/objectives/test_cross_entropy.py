import jax
import jax.numpy as jnp
import numpy as np

from crate_jax.objectives.cross_entropy import cross_entropy, smoothed, targets


def test_it_is_the_negative_log_likelihood():
    logits = np.random.default_rng(0).normal(size=(5, 7)) * 3
    label = np.array([0, 6, 3, 3, 1])
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    got = cross_entropy(jnp.asarray(logits), targets(jnp.asarray(label), 7, on=1.0, off=0.0))
    np.testing.assert_allclose(got, -np.log(probability[np.arange(5), label]), rtol=1e-5)


def test_smoothed_targets_are_a_mixture_with_the_uniform_law():
    soft = targets(jnp.array([2, 0]), 4, **smoothed(0.1, 4))
    np.testing.assert_allclose(soft, 0.9 * np.eye(4)[[2, 0]] + 0.1 / 4, rtol=1e-6)
    np.testing.assert_allclose(soft.sum(1), 1.0, rtol=1e-6)


def test_explicit_targets():
    soft = targets(jnp.array([1]), 3, on=0.9, off=1e-4)
    np.testing.assert_allclose(soft, [[1e-4, 0.9, 1e-4]], rtol=1e-3)


def test_the_gradient_is_softmax_minus_target():
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(3, 5)))
    soft = targets(jnp.array([0, 1, 4]), 5, **smoothed(0.2, 5))
    grad = jax.grad(lambda x: cross_entropy(x, soft).sum())(logits)
    np.testing.assert_allclose(grad, jax.nn.softmax(logits) - soft, atol=1e-6)


def test_bfloat16_logits_are_summed_in_float32():
    logits = jnp.zeros((2, 1000), jnp.bfloat16)
    loss = cross_entropy(logits, targets(jnp.array([0, 1]), 1000, on=1.0, off=0.0))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, np.log(1000), rtol=1e-6)
