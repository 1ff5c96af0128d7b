"""Products of tokens: the numbers of ``x @ W`` in either shape, and its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crate_jax.ops import platform, products


@pytest.mark.parametrize("where", ["cpu", "tpu"])
@pytest.mark.parametrize("leading", [(), (5,), (2, 3), (2, 1, 3)], ids=str)
def test_products_and_gradients_are_those_of_every_token(where, leading, x64, monkeypatch):
    monkeypatch.setattr(products, "platform", lambda: where)
    rng = np.random.default_rng(0)
    x, W, g = (
        rng.normal(size=(*leading, 4)),
        rng.normal(size=(4, 6)),
        rng.normal(size=(*leading, 6)),
    )
    out, back = jax.vjp(products.product, jnp.asarray(x), jnp.asarray(W))
    dx, dW = back(jnp.asarray(g))
    np.testing.assert_allclose(out, x @ W, rtol=1e-12)
    np.testing.assert_allclose(dx, g @ W.T, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(dW, x.reshape(-1, 4).T @ g.reshape(-1, 6), rtol=1e-12, atol=1e-14)


def test_only_a_cpu_merges_the_leading_axes(monkeypatch):
    x, W = jnp.ones((2, 3, 4)), jnp.ones((4, 6))
    for where, rows in (("cpu", (6, 6)), ("gpu", (2, 3, 6)), ("tpu", (2, 3, 6))):
        monkeypatch.setattr(products, "platform", lambda where=where: where)
        jaxpr = jax.make_jaxpr(lambda x, W: products.product(x, W))(x, W)
        (dot,) = (e for e in jaxpr.eqns if e.primitive.name == "dot_general")
        assert dot.outvars[0].aval.shape == rows


def test_the_platform_is_that_of_the_mesh_which_need_not_be_here():
    assert platform.platform() == jax.default_backend()
    device = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((2,), ("data",), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        assert platform.platform() == "tpu"
