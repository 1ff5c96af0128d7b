import jax
import jax.numpy as jnp
import numpy as np

from crate_jax.layers.csc import COLLECTION, CSC, Synthesis
from crate_jax.ops import convolutional_sparse_coding as csc


def _layer(**settings):
    return CSC(atoms=6, kernel=3, stride=2, padding=1, param_dtype="float64", **settings)


def test_a_fresh_layer_codes_with_unit_atoms_and_the_first_step(x64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 6, 3)))
    layer = _layer()
    variables = layer.init(jax.random.key(0), x)
    atoms, state = variables["params"]["atoms"], variables[COLLECTION]
    assert atoms.shape == (3, 3, 3, 6) and state["vector"].shape == (1, 3, 3, 6)
    np.testing.assert_allclose(jnp.sum(atoms**2, axis=(0, 1, 2)), 1.0, rtol=1e-12)
    assert float(state["step_size"]) == csc.INITIAL_STEP
    wanted = csc.fista(x, atoms, eta=0.1, lmbda=0.1, stride=2, padding=1)
    np.testing.assert_array_equal(layer.apply(variables, x), wanted)


def test_another_lambda_takes_the_same_variables(x64):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 6, 3)))
    variables = _layer().init(jax.random.key(1), x)
    few = _layer(lmbda=1.5).apply(variables, x)
    assert np.mean(few != 0) < np.mean(_layer().apply(variables, x) != 0)
    adaptive = _layer(lmbda=0.1, adaptive_lmbda=True).apply(variables, x)
    ratio = (6 * 6 * 3) / (3 * 3 * 6)
    np.testing.assert_array_equal(adaptive, _layer(lmbda=0.1 * ratio).apply(variables, x))


def test_the_error_of_the_code_can_be_seen(x64):
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 6, 6, 3)))
    variables = _layer().init(jax.random.key(2), x)
    assert set(variables) == {"params", COLLECTION}
    z, sown = _layer().apply(variables, x, mutable=["intermediates"])
    shown = Synthesis(3, 6, 3, 2, 1, param_dtype="float64").apply(
        {}, z, variables["params"]["atoms"]
    )
    np.testing.assert_allclose(
        sown["intermediates"]["fidelity"][0], jnp.sum((x - shown) ** 2, axis=(1, 2, 3)), rtol=1e-12
    )
