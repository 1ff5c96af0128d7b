import jax
import jax.numpy as jnp
import pytest

from crate_jax import models
from crate_jax.train.flops import matmul_flops


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize(
    "name, variant, gmac",
    [("crate_alpha", "B/16", 25.9), ("crate_alpha", "L/14", 119.8), ("crate_alpha", "B/32", 6.53)],
)
def test_the_published_multiply_adds_of_crate_alpha(name, variant, gmac, scan):
    model = models.create(name, variant=variant, scan_layers=scan)
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    assert matmul_flops(model.apply, variables, image) / 2e9 == pytest.approx(gmac, rel=3e-3)


def test_products_under_jit_cond_and_scan_count_as_often_as_they_run():
    x = jnp.ones((4, 4))
    one = 2 * 4 * 4 * 4
    assert matmul_flops(jax.jit(lambda x: x @ x), x) == one
    assert matmul_flops(lambda x: jax.lax.fori_loop(0, 5, lambda _, y: y @ x, x), x) == 5 * one
    assert matmul_flops(lambda x: jax.lax.cond(x[0, 0] > 0, lambda: x @ x, lambda: x), x) == one


def test_a_gradient_costs_two_forwards_more():
    w, x = jnp.ones((8, 8)), jnp.ones((3, 8))
    forward = matmul_flops(lambda w, x: x @ w, w, x)
    both = matmul_flops(jax.grad(lambda w, x: ((x @ w) ** 2).sum(), argnums=(0, 1)), w, x)
    assert both == 3 * forward
