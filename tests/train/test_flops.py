import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from crate_jax import models
from crate_jax.train.flops import kernel_flops, matmul_flops


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


def test_a_scanned_step_counts_what_xla_counts_of_the_unrolled_one():
    sizes = {"width": 64, "depth": 3, "heads": 4, "patch": 8, "num_classes": 10}
    image = jax.ShapeDtypeStruct((8, 32, 32, 3), jnp.float32)

    def gradient(scan):
        model = models.create("crate_alpha", scan_layers=scan, **sizes)
        params = jax.eval_shape(model.init, jax.random.key(0), image)
        return jax.grad(lambda p, x: model.apply(p, x).mean()), params

    function, params = gradient(scan=False)
    xla = jax.jit(function).lower(params, image).compile().cost_analysis()["flops"]
    ours = matmul_flops(*gradient(scan=True), image)
    assert ours == matmul_flops(function, params, image)
    assert ours < xla < 1.15 * ours  # XLA counts elementwise operations besides


def test_rematerialised_products_count_again():
    w = jnp.ones((8, 8))

    def loss(w, x):
        return (jnp.tanh(x @ w) @ w).sum()

    plain = matmul_flops(jax.grad(loss), w, w)
    again = matmul_flops(jax.grad(jax.checkpoint(loss)), w, w)
    assert again - plain == 2 * 8**3  # the first product; nobody asks for the second one's value


def test_a_kernel_counts_over_its_grid_and_a_sharded_function_over_its_devices():
    x = jnp.ones((32, 8))

    def kernel(x_ref, o_ref):
        o_ref[:] = x_ref[:] @ x_ref[:].T

    def products(x):
        block = pl.BlockSpec((8, 8), lambda i: (i, 0))
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        call = pl.pallas_call(kernel, shape, grid=(4,), in_specs=[block], out_specs=block)
        return call(x)

    assert matmul_flops(products, x) == 4 * 2 * 8**3
    assert kernel_flops(products, x) == 4 * 2 * 8 * 128 * 128  # of a unit that is mostly idle
    assert kernel_flops(lambda x: x @ x.T, x) == 0

    mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    rows = jax.sharding.PartitionSpec("data")
    split = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=rows, out_specs=rows)
    assert matmul_flops(split, x) == 2 * (2 * 16 * 16 * 8)
