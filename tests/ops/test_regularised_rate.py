"""F and its derivatives against F as the paper writes it, and jax's own derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.ops import regularised_rate as rates
from tests.ops import plain_rates
from tests.ops.plain_rates import EPS_SQ, SIZES, D, N

LMBDA = 0.05
LAW = {"eps_sq": EPS_SQ, "lmbda": LMBDA}


def plain(Z):
    return plain_rates.plain(Z, LMBDA)


def test_value_and_gradient(x64):
    """Of two at once, with a class that has no rows."""
    Z = np.stack([np.random.default_rng(1).standard_normal((N, D)), np.zeros((N, D))])
    both = jax.jit(lambda Z: rates.value_and_gradient(Z, (3, 0, 4, 6), **LAW))
    only = jax.jit(
        jax.value_and_grad(lambda Z: rates.regularised_rate_reduction(Z, (3, 0, 4, 6), **LAW).sum())
    )
    F, grad = both(Z)
    value, gradient = jax.jit(jax.value_and_grad(plain))(Z[0])
    np.testing.assert_allclose(F, [value, 0], rtol=1e-12)
    np.testing.assert_allclose(grad, [gradient, np.zeros((N, D))], atol=1e-12)
    total, slope = only(Z)
    np.testing.assert_allclose(total, value, rtol=1e-12)
    np.testing.assert_allclose(slope, grad, atol=1e-12)
    assert F.dtype == grad.dtype == jnp.float64


def test_products_with_the_hessian(x64):
    """At a point that is no critical one; some classes have fewer rows than dimensions."""
    Z, V = np.random.default_rng(1).standard_normal((2, N, D))
    product = jax.jit(lambda Z, V: rates.hessian_product(Z, V, SIZES, **LAW))(Z, V)
    want = jax.jit(lambda Z, V: jax.jvp(jax.grad(plain), (Z,), (V,))[1])(Z, V)
    np.testing.assert_allclose(product, want, atol=1e-12)


@pytest.mark.parametrize("m, doubled", [(1, 1), (5, 1), (6, 32)])
def test_lower_triangles_are_inverted(m, doubled, x64, monkeypatch):
    monkeypatch.setattr(rates, "DOUBLED", doubled)
    L = np.tril(np.random.default_rng(m).standard_normal((3, m, m))) + 2 * np.eye(m)
    np.testing.assert_allclose(jax.jit(rates._invert_lower)(L), np.linalg.inv(L), atol=1e-12)


def test_rows_that_are_in_no_class_are_refused():
    with pytest.raises(ValueError, match="do not sum to the 13 rows"):
        rates.regularised_rate_reduction(jnp.zeros((N, D)), (3, 4), **LAW)
